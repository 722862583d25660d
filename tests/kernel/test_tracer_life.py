"""Starting, stopping and forking a tracer at awkward moments leaves the numbers right."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kerneltrace_core.requests import KernelStats, RequestTracer, TracerOptions, current
from kerneltrace_core.requests.engine import pop, push

CALLS = 20

pytestmark = pytest.mark.needs("thread_registration", "task_storage")


@pytest.fixture
def tracer() -> Iterator[RequestTracer]:
    tracer = RequestTracer.shared(TracerOptions(required=True))
    yield tracer
    tracer.stop()


def work(tracer: RequestTracer) -> KernelStats:
    stats: KernelStats = tracer.open()
    previous = push(stats.record)
    for _ in range(CALLS):
        os.getppid()
    pop(previous)
    tracer.finish(stats)
    return stats


def getppids(stats: KernelStats) -> int | None:
    calls = stats.top_syscalls
    return None if calls is None else sum(c.calls for c in calls if c.name == "getppid")


def test_requests_after_a_restart_are_exact_while_one_from_before_is_still_open(
    tracer: RequestTracer,
) -> None:
    async def main() -> list[int | None]:
        tracer.start()
        old: KernelStats = tracer.open()
        record, go_on = old.record, asyncio.Event()
        assert record is not None

        async def stream() -> None:
            while not go_on.is_set():
                await asyncio.sleep(0)

        token = current.set(record)
        streaming = asyncio.ensure_future(_drive(record.step(stream())))
        current.reset(token)
        await asyncio.sleep(0)
        tracer.stop()
        tracer.start()
        seen = []
        for _ in range(4):
            seen.append(getppids(work(tracer)))
            await asyncio.sleep(0)  # the old one has a step in between
        go_on.set()
        await streaming
        tracer.finish(old)
        seen.append(getppids(work(tracer)))
        return seen

    assert asyncio.run(main()) == [CALLS] * 5


async def _drive(coroutine: object) -> None:
    await coroutine  # type: ignore[misc]


def test_work_that_no_entry_was_left_for_is_unknown_and_not_zero(
    tracer: RequestTracer, caplog: pytest.LogCaptureFixture
) -> None:
    tracer.start()
    assert tracer._seats is not None
    tracer._seats._free.clear()
    seen: list[KernelStats] = []

    thread = threading.Thread(target=lambda: seen.append(work(tracer)))
    thread.start()
    thread.join()

    (stats,) = seen
    assert (stats.attribution, stats.syscalls, stats.blocked_ns) == ("none", None, None)
    assert tracer.health()["status"] == "degraded"
    assert "all entries are taken" in caplog.text


def test_a_start_for_which_no_thread_is_left_is_tried_again(
    tracer: RequestTracer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(threading.Thread, "start", refuse)
        tracer.start_soon()
        tracer.start_soon()
        assert not tracer.ready
        assert [record.getMessage() for record in caplog.records] == [
            "start kernel tracing: can't start new thread; trying again with each request"
        ]
    tracer.start()

    assert getppids(work(tracer)) == CALLS


def _holds_bpf() -> int:
    """Return 0 if this process has no descriptor of a BPF object, 1 if it has, 2 if unknown."""
    try:
        targets = []
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # the listing's own
                targets.append(str(entry.readlink()))
        return int(any("bpf" in target for target in targets))
    except BaseException:  # noqa: BLE001 - in a forked child nothing may go on from here
        return 2


def test_a_fork_waits_for_a_start_that_is_under_way(tracer: RequestTracer) -> None:
    starting = threading.Thread(target=tracer.start)
    starting.start()
    child = os.fork()
    if child == 0:
        os._exit(_holds_bpf())
    _, status = os.waitpid(child, 0)
    starting.join()

    assert os.waitstatus_to_exitcode(status) == 0
    assert getppids(work(tracer)) == CALLS
