"""Background tasks on the real kernel: each has exactly its own reads, under real workers."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

import kerneltrace_core
from django_site import configure
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.requests import RequestTracer, TracerOptions
from kerneltrace_django import tasks
from kerneltrace_django.current import current_stats
from kerneltrace_django.work import Work

configure()

TESTS = Path(__file__).parents[1]
SOURCE = Path(kerneltrace_core.__file__).parents[1]
TASKS = 24
NAME = "integration.celery_site.reads"

pytestmark = [pytest.mark.deadline(120)]


def serve_celery(folder: Path, pool: str, **settings: str) -> list[dict[str, Any]]:
    """Run a worker until its tasks are done; return what they noted."""
    done = subprocess.run(
        [sys.executable, "-m", "integration.celery_site", pool, str(TASKS)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd="/",
        env={
            **os.environ,
            "PYTHONPATH": f"{TESTS}{os.pathsep}{SOURCE}",
            "CELERY_SITE_REPORT": str(folder),
            **settings,
        },
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_each_celery_task_has_its_own_reads_queries_and_time(
    pool: str, require: Callable[..., None], open_tmp_path: Path
) -> None:
    require("thread_registration")

    noted = serve_celery(open_tmp_path, pool)

    begun = {each["task_id"]: each for each in noted if "live" in each}
    ended = {each["task_id"]: each for each in noted if "final" in each}
    assert len(begun) == len(ended) == TASKS
    for task_id, task in begun.items():
        final = ended[task_id]
        assert task["live"] == final["final"] == task["times"]
        assert (final["pid"], final["thread"]) == (task["pid"], task["thread"])
        assert (final["name"], final["attribution"], final["queries"]) == (NAME, "exact", 1)
        # Each read is followed by half a millisecond of sleep (until Python 3.11 that is a
        # select() of nothing); and the parts are the whole.
        slept_ns = final["blocked_by"]["sleep"] + final["blocked_by"]["poll"]
        assert slept_ns >= task["times"] * 450_000
        assert final["parts_ns"] == final["wall_ns"]
    assert sorted(each["state"] for each in ended.values()).count("FAILURE") == TASKS // 5
    workers = {each["pid" if pool == "prefork" else "thread"] for each in noted}
    assert len(workers) > 1, "one worker has done everything"
    assert pool == "prefork" or len({each["pid"] for each in noted}) == 1


# ---- Django's tasks framework ---------------------------------------------------------------


def frameworks() -> list[str]:
    found = []
    for package in ("django.tasks", "django_tasks"):
        try:
            import_module(package)
        except ImportError:
            continue
        found.append(package)
    return found


def probe() -> Support:
    if frameworks():
        return Support.yes()
    return Support.no("neither django.tasks (Django 6) nor the package django-tasks is here")


def read(times: int) -> int:
    """Be a task: read, and return how often the kernel says that it did."""
    for _ in range(times):
        os.pread(ZERO, 512, 0)
    live = current_stats()
    return -1 if live is None else calls_of(live)


ZERO = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)


async def read_async(times: int) -> int:
    return read(times)


def calls_of(stats: Any) -> int:
    return {call.name: call.calls for call in stats.top_syscalls}.get("pread64", 0)


@pytest.fixture
def finished() -> Iterator[list[dict[str, Any]]]:
    """Collect what the signal says, and end tracing afterwards."""
    found: list[dict[str, Any]] = []

    def receive(sender: Any, **facts: Any) -> None:
        found.append(facts)

    tasks.kernel_task_finished.connect(receive)
    with override_settings(
        INSTALLED_APPS=[
            "kerneltrace_django",
            *(["django_tasks"] if "django_tasks" in frameworks() else []),
        ],
        TASKS={
            "default": {
                "BACKEND": f"{(frameworks() or ['none'])[-1]}.backends.immediate.ImmediateBackend"
            }
        },
        KERNELTRACE={"REQUIRED": True, "BACKEND": "bpf"},
    ):
        tasks.connect()
        yield found
        RequestTracer.shared(TracerOptions()).stop()
    tasks.kernel_task_finished.disconnect(receive)


def task_of(function: Any) -> Any:
    return import_module(frameworks()[-1]).task(function)


@pytest.fixture
def _framework(require: Callable[..., None]) -> None:
    require("thread_registration")
    require("a tasks framework", probe=probe)


@pytest.mark.usefixtures("_framework")
@pytest.mark.parametrize("function", [read, read_async])
def test_a_task_of_django_has_its_own_reads(
    function: Any, finished: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kerneltrace.task")

    results = [task_of(function).enqueue(times) for times in (3, 11, 1)]

    assert [result.return_value for result in results] == [3, 11, 1]
    assert [calls_of(each["stats"]) for each in finished] == [3, 11, 1]
    assert [each["task_id"] for each in finished] == [str(result.id) for result in results]
    assert {each["name"] for each in finished} == {f"{__name__}.{function.__name__}"}
    assert {each["state"] for each in finished} == {"SUCCESSFUL"}
    told = [record for record in caplog.records if record.name == "kerneltrace.task"]
    assert len(told) == 3
    assert told[1].kernel_syscalls == finished[1]["stats"].syscalls
    assert told[1].getMessage().startswith(f"{__name__}.{function.__name__} SUCCESSFUL in ")


@pytest.mark.usefixtures("_framework")
def test_a_task_that_is_run_inside_a_request_is_the_requests_work(
    finished: list[dict[str, Any]],
) -> None:
    tracer = RequestTracer.shared(TracerOptions(required=True, backend="bpf"))
    tracer.start()
    request = Work(tracer)

    task_of(read).enqueue(5)

    request.end()
    assert calls_of(request.stats) == 5
    assert finished == []


def test_tasks_of_a_process_that_cannot_trace_run_all_the_same(
    finished: list[dict[str, Any]],
) -> None:
    with override_settings(KERNELTRACE={"ENABLED": False}):
        assert tasks.begin("1") is None
        tasks.end("1", None, "name", "SUCCESSFUL")

    assert finished == []


def test_greenlets_are_not_taken_for_threads(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from types import SimpleNamespace

    patched = SimpleNamespace(is_module_patched=lambda name: name == "threading")
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)  # type: ignore[arg-type]

    assert tasks.begin("1") is None
    assert tasks.begin("2") is None
    (record,) = caplog.records
    assert "use prefork or threads" in record.getMessage()
