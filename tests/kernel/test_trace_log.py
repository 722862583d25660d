"""What a program prints is read, in order, by a thread and by an event loop."""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.forked import in_child
from harness.nobody import as_nobody
from harness.objects import compile_object
from harness.tiers import Require
from kerneltrace_core import ClosedError, PrivilegeError, Session
from kerneltrace_core._native import lib
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.kernel.tracefs import find_tracefs
from kerneltrace_core.session.traceline import TraceLine
from kerneltrace_core.session.tracelog import trace_log

pytestmark = pytest.mark.kernel

# Nobody else prints this.
MARK = os.getpid()
PATIENCE_SECONDS = 60


@pytest.fixture
def printing(require: Require) -> Iterator[BpfObject]:
    require("tracefs")
    with BpfObject(compile_object("printing").read_bytes(), "printing") as opened:
        opened.load()
        wait_until_it_is_on()
        yield opened


def wait_until_it_is_on() -> None:
    """Wait for the trace event behind bpf_printk: newest kernels leave it to a worker at load."""
    mounted = find_tracefs()
    assert mounted is not None
    switch = mounted / "events" / "bpf_trace" / "bpf_trace_printk" / "enable"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while switch.exists() and switch.read_text() != "1\n" and time.monotonic() < deadline:
        time.sleep(0.01)


def write(opened: BpfObject, count: int, mark: int = MARK) -> None:
    context = bytearray(struct.pack("=12Q", count, mark, *[0] * 10))
    lib.run_program(opened.program_fd("print"), context, "run print")


def ours(line: TraceLine, mark: int = MARK) -> bool:
    return line.text.startswith(f"kerneltrace {mark}: ")


def expected(count: int, mark: int = MARK) -> list[str]:
    return [f"kerneltrace {mark}: line {number}" for number in range(count)]


def test_lines_come_in_order_with_who_wrote_them(printing: BpfObject) -> None:
    with trace_log(timeout=1) as log:
        write(printing, 10)
        found = [line for line in log if ours(line)]

    assert [line.text for line in found] == expected(10)
    task = Path("/proc/thread-self/comm").read_text().removesuffix("\n")
    assert {line.task for line in found} <= {task, "<...>"}
    status = Path("/proc/thread-self/status").read_text()
    if "NSpid:" in status and len(status.partition("NSpid:")[2].splitlines()[0].split()) == 1:
        assert {line.pid for line in found} == {threading.get_native_id()}
    assert all(0 <= line.cpu < lib.possible_cpus() for line in found)
    times = [line.time_ns for line in found]
    assert all(at is not None for at in times)
    assert times == sorted(at for at in times if at is not None)


def test_a_reader_that_waits_is_woken_by_what_is_printed(printing: BpfObject) -> None:
    begun = threading.Event()
    found: list[str] = []

    with trace_log(timeout=PATIENCE_SECONDS) as log:

        def read() -> None:
            begun.set()
            for line in log:
                if ours(line):
                    found.append(line.text)
                if len(found) == 3:
                    break

        reader = threading.Thread(target=read)
        reader.start()
        begun.wait()
        time.sleep(0.05)  # most often it waits by now
        write(printing, 3)
        reader.join(PATIENCE_SECONDS)

        assert not reader.is_alive()

    assert found == expected(3)


def test_an_event_loop_reads_while_it_does_other_things(printing: BpfObject) -> None:
    async def main() -> list[str]:
        found: list[str] = []
        turns = 0

        async def beside() -> None:
            nonlocal turns
            for turns in range(20):  # noqa: B007 - counted from outside
                await asyncio.sleep(0.001)
            write(printing, 5)

        async with trace_log(timeout=PATIENCE_SECONDS) as log:
            other = asyncio.ensure_future(beside())
            async for line in log:
                if ours(line):
                    found.append(line.text)
                if len(found) == 5:
                    break
            await other
        assert turns == 19
        return found

    assert asyncio.run(main()) == expected(5)


def test_closing_wakes_a_reader_that_waits(printing: BpfObject) -> None:
    log = trace_log()
    lines = iter(log)
    ended = threading.Event()

    def read() -> None:
        for _ in lines:
            pass
        ended.set()

    reader = threading.Thread(target=read)
    reader.start()
    log.close()
    reader.join(PATIENCE_SECONDS)

    assert ended.is_set()


# ---- of a session -------------------------------------------------------------------


@pytest.fixture
def session(require: Require) -> Iterator[Session]:
    require("tracefs")
    with Session(compile_object("printing"), name="printing") as opened:
        wait_until_it_is_on()
        yield opened


def program_of(session: Session) -> Any:
    """Return what runs the session's program."""
    parts = session._parts
    assert parts is not None
    return parts.object


def test_a_sessions_trace_log_has_what_its_program_prints(session: Session) -> None:
    with session.trace_log(timeout=1) as log:
        write(program_of(session), 7, MARK + 1)
        found = [line.text for line in log if ours(line, MARK + 1)]

    assert found == expected(7, MARK + 1)


def test_a_reader_of_the_trace_log_is_woken_by_the_sessions_end(session: Session) -> None:
    log = session.trace_log()
    lines = iter(log)

    def read() -> None:
        while next(lines, None) is not None:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    session.close()
    reader.join(PATIENCE_SECONDS)

    assert not reader.is_alive()
    assert log.closed


def test_a_forked_child_takes_no_line_from_its_parent(session: Session) -> None:
    with session.trace_log(timeout=1) as log:
        write(program_of(session), 3, MARK + 2)

        def child() -> str:
            try:
                return f"read {len(list(log))} lines"
            except ClosedError as error:
                return str(error)

        told = in_child(child)
        write(program_of(session), 2, MARK + 3)
        found = [line.text for line in log if line.text.startswith("kerneltrace ")]

    assert told == "read trace log: it is closed"
    assert found == expected(3, MARK + 2) + expected(2, MARK + 3)


def test_who_may_not_read_tracefs_is_told_what_to_do(require: Require) -> None:
    require("tracefs", "capability:cap_setuid")
    mounted = find_tracefs()
    assert mounted is not None
    everybodys = mounted.stat().st_mode & 0o005
    data = compile_object("printing").read_bytes()

    def act() -> str:
        with Session(data) as session:
            try:
                session.trace_log(timeout=0)
            except PrivilegeError as error:
                return str(error)
        return "it was read"

    told = as_nobody(act)

    if everybodys:
        assert told == "it was read"
    else:
        assert told.startswith("read trace log: permission denied reading tracefs (run as root, or")
