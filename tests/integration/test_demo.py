"""The examples run, and what `make demo` prints is what a newcomer is promised."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.pace import time_factor
from harness.tiers import Require

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = [sys.executable, str(EXAMPLES / "demo.py")]
# The widest row ends here; a terminal of 100 columns breaks no line.
COLUMNS = 100
BLOCKING_SLEEP_MS = 100.0


def run_demo(seconds: float, **environment: str) -> str:
    """Return what the demo prints; it must end well."""
    run = subprocess.run(
        [*DEMO, "--seconds", str(seconds)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=90 * time_factor(),
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def row_of(output: str, route: str) -> list[str]:
    """Return the cells of a route's row: requests, p50 wall, bar, cpu, run queue, blocked, ..."""
    (row,) = (line for line in output.splitlines() if line.startswith(f"{route} "))
    return row.split()[1:]


@contextlib.contextmanager
def serving(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server that says its address; yields it and the address, ends it with Ctrl-C."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"running on (http://\S+)", line):
                yield process, found[1]
                break
        else:
            pytest.fail("it said no address")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30 * time_factor())


def get(url: str) -> tuple[str, str | None]:
    """Return the body and the Server-Timing header."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode(), answer.headers["server-timing"]


def until_traced(url: str) -> str:
    """Return the Server-Timing header once there is one."""
    end = time.monotonic() + 20 * time_factor()
    while time.monotonic() < end:
        _, header = get(url)
        if header:
            return header
        time.sleep(0.02)
    return pytest.fail(f"{url} is not traced")


def test_the_demo_shows_what_held_the_loop_and_who_waited(require: Require) -> None:
    require("thread_registration", "task_storage")

    output = run_demo(3)

    assert "backend bpf" in output
    assert "attribution exact" in output
    held = re.search(r"/blocking-sleep held the event loop for (\d+\.\d) ms .*\(sleep", output)
    assert held is not None
    assert BLOCKING_SLEEP_MS <= float(held[1]) < 2 * BLOCKING_SLEEP_MS
    assert re.search(r"\d+ other\s+requests? under way .* waited for the loop", output)
    _, wall, _, _, _, blocked, cause, *_ = row_of(output, "/blocking-sleep")
    assert float(wall) >= BLOCKING_SLEEP_MS
    assert float(blocked) >= BLOCKING_SLEEP_MS
    assert cause == "sleep"
    assert row_of(output, "/file")[-1] == "1.0", "one fsync per request"
    assert max(map(len, output.splitlines())) <= COLUMNS
    assert "\x1b" not in output, "no colours where there is no terminal"


def test_the_ledger_that_is_shown_adds_up(require: Require) -> None:
    require("thread_registration", "task_storage")

    output = run_demo(1)

    picture = output.split("The slowest request")[1].split("measured")[0]
    _, *parts, total = [float(ms) for ms in re.findall(r"(\d+\.\d\d) ms  ", picture)]
    measured = re.search(r"measured (\d+\.\d\d) ms", output)
    assert measured is not None
    assert total == pytest.approx(float(measured[1]), rel=0.01, abs=0.1)
    assert sum(parts) == pytest.approx(total, abs=0.05)


def test_no_part_of_a_ledger_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from tour.ledger import LEDGER, lines, remark

    blocked = LEDGER[2]
    names = ("sleep", "disk", "lock", "poll", "net", "pipe", "child", "fault", "other")
    whole = 10_000_000_000
    for count in range(len(names) + 1):
        many = {"blocked_by": dict.fromkeys(names[:count], 1_000_000_000)}
        for ns in range(0, whole + 1, whole // 40):
            shown = list(lines(blocked, ns, whole, remark(blocked, many)))
            assert max(map(len, shown)) <= COLUMNS
            found = [each for line in shown for each in re.findall(r"(\w+) 1000\.00", line)]
            assert found == list(names[:count])


def test_the_demo_runs_without_privileges_and_says_so() -> None:
    output = run_demo(1, KERNELTRACE_BACKEND="procfs")

    assert "from /proc (backend procfs)" in output
    assert row_of(output, "/sleep")[-3:] == ["-", "0", "-"], "no system calls are made up"


def test_the_demo_is_in_colour_on_a_terminal() -> None:
    ours, theirs = os.openpty()
    try:
        demo = subprocess.Popen([*DEMO, "--seconds", "0.5"], stdout=theirs, stderr=theirs)
        os.close(theirs)
        printed = b""
        with contextlib.suppress(OSError):  # how a terminal says that nobody is at its other end
            while piece := os.read(ours, 65536):
                printed += piece
    finally:
        os.close(ours)

    assert demo.wait(30 * time_factor()) == 0, printed.decode()
    assert b"\r  " in printed, "the progress is one line"
    assert b"\x1b[1m" in printed


def test_the_demo_says_that_tracing_is_off() -> None:
    assert "Nothing was traced (backend off)" in run_demo(0.5, KERNELTRACE_ENABLED="0")


def test_the_demo_ends_its_application_when_it_is_interrupted() -> None:
    demo = subprocess.Popen([*DEMO, "--seconds", "60"], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "answered" in line:
            break
    (child,) = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()

    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=30 * time_factor())

    assert demo.returncode == 130
    assert not Path(f"/proc/{child}").exists()


def test_the_example_can_be_left_running() -> None:
    with serving([*DEMO, "--serve", "--port", "0"]) as (process, url):
        header = until_traced(f"{url}/nothing")
        body, _ = get(f"{url}/sqlite")

    assert header.startswith("kt-cpu;dur=")
    assert json.loads(body) == {"visits": 1}
    assert process.returncode == 0


def test_the_starlette_example_traces_its_first_request(require: Require) -> None:
    require("thread_registration", "task_storage")
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES)]

    with serving([*command, "--port", "0", "starlette_app:app"]) as (_, url):
        body, _ = get(f"{url}/live")
        health, _ = get(f"{url}/health")

    size = (EXAMPLES / "starlette_app.py").stat().st_size
    assert json.loads(body) == {"opens": 1, "read_bytes": size}
    assert json.loads(health)["status"] == "ok"
