"""`manage.py kerneltrace`: the doctor's words, the last requests, any command with its ledger."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from django_site import configure
from fake_tracer import ALL, FakeRecord
from kerneltrace_django import recent
from kerneltrace_django.current import RequestStats
from kerneltrace_django.db import DatabaseStats
from kerneltrace_django.ledger import PARTS, duration, page, size
from kerneltrace_django.management.commands import kerneltrace
from kerneltrace_django.recent_socket import RecentServer

configure()

MS = 1_000_000
TESTS = Path(__file__).parents[1]
SITE = """
import sys
sys.path.insert(0, {tests!r})
from django.conf import settings
settings.configure(
    SECRET_KEY="x",
    INSTALLED_APPS=["django.contrib.contenttypes", "kerneltrace_django"],
    MIDDLEWARE=["kerneltrace_django.middleware.KernelTraceMiddleware"],
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {name!r}}}}},
    KERNELTRACE={settings!r},
)
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""


@pytest.fixture
def manage(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command of a project in a process of its own."""

    def run(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        chosen = {"BACKEND": "procfs", **settings}
        program = tmp_path / "manage.py"
        program.write_text(
            SITE.format(tests=str(TESTS), name=str(tmp_path / "db"), settings=chosen)
        )
        return subprocess.run(
            [sys.executable, program, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


# ---- exec ----------------------------------------------------------------------------------


def test_a_command_runs_as_ever_and_its_ledger_follows_on_stderr(
    manage: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    plain = manage("migrate", "--plan")
    traced = manage("kerneltrace", "exec", "--", "migrate", "--plan")

    assert traced.returncode == plain.returncode == 0
    assert traced.stdout == plain.stdout != ""
    first, *lines = traced.stderr.splitlines()
    assert first.startswith("migrate: ")
    assert first.endswith(" (procfs)")
    assert lines[0].split()[:2] == ["on", "cpu"]
    assert lines[-1].split()[:2] == ["database", "default"]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["shell", "-c", "raise SystemExit(7)"], 7),
        (["shell", "-c", "1 / 0"], 1),
        (["no_such_command"], 1),
        (["migrate", "no_such_app"], 1),
        (["migrate", "--no-such-option"], 2),
        (["version"], 0),
    ],
)
def test_a_command_that_fails_has_its_own_status_and_words(
    manage: Callable[..., subprocess.CompletedProcess[str]], words: list[str], status: int
) -> None:
    plain = manage(*words)
    traced = manage("kerneltrace", "exec", "--", *words)

    assert traced.returncode == plain.returncode == status
    assert traced.stdout == plain.stdout
    # A traceback is the interpreter's, which prints it last.
    lines = traced.stderr.splitlines()
    assert set(plain.stderr.splitlines()[-1:]) <= set(lines)
    assert [line for line in lines if line.startswith(f"{words[0]}: ") and "(procfs)" in line]


def test_the_dashes_may_be_left_out(
    manage: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert manage("kerneltrace", "exec", "version").returncode == 0


def test_without_a_command_exec_says_how_to_name_one() -> None:
    with pytest.raises(CommandError, match="exec -- migrate"):
        call_command("kerneltrace", "exec")


def test_with_tracing_off_the_command_runs_all_the_same(
    manage: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = manage("kerneltrace", "exec", "--", "version", ENABLED=False)

    assert (done.returncode, done.stderr) == (0, "version: not traced\n")


# ---- doctor --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_doctor_says_what_it_says_with_its_own_status(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(command: list[str], **_options: Any) -> Any:
        asked.append(command)
        return SimpleNamespace(stdout="what the doctor says\n", returncode=status)

    monkeypatch.setattr(kerneltrace.subprocess, "run", run)
    out = StringIO()

    ended = 0
    try:
        call_command("kerneltrace", "doctor", "--json", stdout=out)
    except SystemExit as error:
        ended = error.code  # type: ignore[assignment]

    assert ended == status
    assert out.getvalue() == "what the doctor says\n"
    assert asked == [[sys.executable, "-m", "kerneltrace_core.doctor", "--json"]]


def test_the_doctor_works_in_a_project_with_broken_settings(
    manage: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = manage("kerneltrace", "doctor", "--json", NO_SUCH_KEY=1)

    assert json.loads(done.stdout)
    assert done.returncode in (0, 1, 2)


# ---- recent --------------------------------------------------------------------------------


def stats(wall_ms: int) -> RequestStats:
    record = FakeRecord(value=2)
    record.spend(wall_ms * MS)
    known = RequestStats(record, ALL)
    known.freeze(record.close())
    known.record = None
    return known


@pytest.fixture
def folder(open_tmp_path: Path) -> Iterator[str]:
    """Return where two processes answer: here one, which is asked on two sockets."""
    where = str(open_tmp_path / "run")
    slow = recent.RecentRequest(1.0, "GET", "/slow", "slow", 200, stats(900))
    fast = recent.RecentRequest(2.0, "POST", "/fast", "fast", 302, stats(3))
    servers = [
        RecentServer.open(where, lambda each=each: [each.as_document()])  # type: ignore[misc]
        for each in (slow, fast)
    ]
    yield where
    for server in servers:
        server.close()


def run_recent(*words: str) -> str:
    out = StringIO()
    call_command("kerneltrace", "recent", *words, stdout=out, stderr=out)
    return out.getvalue()


def paths(table: str) -> list[str]:
    return [line.split()[3] for line in table.splitlines()[1:]]


def test_requests_of_all_processes_are_in_one_table_by_time(folder: str) -> None:
    assert paths(run_recent("--folder", folder)) == ["/slow", "/fast"]


def test_the_slowest_are_those_of_all_that_are_remembered(folder: str) -> None:
    assert paths(run_recent("--folder", folder, "--slowest", "-n", "1")) == ["/slow"]
    assert paths(run_recent("--folder", folder, "-n", "1")) == ["/fast"]


def test_json_is_one_request_a_line(folder: str) -> None:
    lines = run_recent("--folder", folder, "--json").splitlines()

    assert [json.loads(line)["status_code"] for line in lines] == [200, 302]


def test_when_nobody_answers_it_says_so_with_status_2(open_tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no process answers") as refusal:
        run_recent("--folder", str(open_tmp_path))

    assert refusal.value.returncode == 2


def test_without_a_folder_it_says_which_setting_is_missing() -> None:
    with pytest.raises(CommandError, match="RECENT_SOCKET") as refusal:
        run_recent()

    assert refusal.value.returncode == 2


# ---- the page ------------------------------------------------------------------------------


def test_a_page_tells_every_part_that_matters() -> None:
    record = FakeRecord(value=2)
    record.spend(10 * MS, READ_BYTES=4096, NET_RX_BYTES=1_500_000, FORKS=1)
    record.block_on("disk", 20 * MS)
    record.block_on("net", 30 * MS)
    record.call("openat", ns=2 * MS)
    record.call("fsync", errors=1, ns=3 * MS)
    known = RequestStats(record, ALL)
    known.db = {"default": DatabaseStats(3, 25 * MS, 1000, 20, 0, 0)}

    assert page("job", known).splitlines() == [
        "job: 60.0 ms (bpf)",
        "  on cpu                       10.0 ms   17%",
        "  blocked                      50.0 ms   83%  net 30.0 ms, disk 20.0 ms",
        "  system calls              2, 1 failed in 5.0 ms: fsync 1, openat 1",
        "  files                     4.1 kB read, 1 opens, 1 fsyncs",
        "  network                   1.5 MB received",
        "  processes                 1 forks",
        "  database default          3 queries, 25.0 ms blocked, 1.0 kB received, 20 B sent",
    ]


def test_parts_are_what_adds_up_to_the_time() -> None:
    record = FakeRecord(value=2)
    record.spend(7 * MS)
    record.block_on("net", 3 * MS)
    known = RequestStats(record, ALL)

    assert sum(getattr(known, field) for field, _ in PARTS) == known.wall_ns


@pytest.mark.parametrize(
    ("ns", "told"),
    [(0, "0 us"), (940, "0.9 us"), (45_200, "45 us"), (12_340_000, "12.3 ms"), (1.5e9, "1.500 s")],
)
def test_a_time_has_the_unit_that_suits_it(ns: int, told: str) -> None:
    assert duration(ns) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (3e15, "3000.0 TB")],
)
def test_a_size_has_the_unit_that_suits_it(count: int, told: str) -> None:
    assert size(count) == told
