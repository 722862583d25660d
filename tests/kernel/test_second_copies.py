"""Programs that the kernel runs for one thread of a CPU at a time: the second copy stands in.

From Linux 7.2 on a program at a tracepoint may lose its CPU in its middle, and until it has it
back the kernel runs it for nobody else there.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.pace import in_guest
from harness.tiers import Require
from kerneltrace_core.kernel.btf import preempts_programs
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.requests import KernelStats, programs
from kerneltrace_core.requests.plan import SECOND, Plan
from traced import calls_of, errors_of, on_cpu, on_loop, tracing

Choose = Callable[[Plan], Plan]
Loading = Callable[..., None]

pytestmark = [pytest.mark.kernel, pytest.mark.needs("thread_registration", "task_storage")]

BLOCK = 4096
MESSAGE = bytes(100)
NEIGHBOURS = 3
ROUNDS = 40
EXCHANGES = 60_000 if in_guest() else 100_000
# Of what three processes that do nothing else leave of a CPU; a guest is at its worst here, for
# programs take a large part of its time, and lose the CPU with its own virtual one.
MISSED_PERCENT = 1


def programs_lose_their_cpu() -> Support:
    """Tell whether programs of this kernel are interrupted often enough to see that."""
    if not preempts_programs():
        return Support.no("programs at tracepoints keep their CPU (before Linux 7.0)")
    return Support.yes() if in_guest() else Support.no("seldom, outside of emulated machines")


def both(plan: Plan) -> Plan:
    return plan


def second_alone(plan: Plan) -> Plan:
    """Leave out each program that has a second copy, as the kernel does now and then."""
    stood_for = {name.removesuffix(SECOND) for name in plan.programs if name.endswith(SECOND)}
    return replace(plan, programs=tuple(name for name in plan.programs if name not in stood_for))


def first_alone(plan: Plan) -> Plan:
    """Leave out the second copies, although the first ones expect them."""
    kept = tuple(name for name in plan.programs if not name.endswith(SECOND))
    return replace(plan, programs=kept)


def without(*left_out: str) -> Choose:
    """Leave out programs that have a second copy and the copies, or that have none."""

    def choose(plan: Plan) -> Plan:
        kept = (name for name in plan.programs if name.removesuffix(SECOND) not in left_out)
        return replace(plan, programs=tuple(kept))

    return choose


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Loading:
    """Return a function that has second copies loaded whatever the kernel, or some of them."""
    plan_programs = programs.plan_programs

    def load(choose: Choose, second_copies: bool = True) -> None:
        monkeypatch.setattr(programs, "preempts_programs", lambda _btf_path: second_copies)
        monkeypatch.setattr(programs, "plan_programs", lambda *of: choose(plan_programs(*of)))

    return load


def exchange(times: int) -> None:
    """Ask for the parent, send and receive, so many times."""
    one, other = socket.socketpair()
    with one, other:
        for _ in range(times):
            os.getppid()
            one.send(MESSAGE)
            other.recv(len(MESSAGE))


def known_work(descriptor: int) -> None:
    page = mmap.mmap(-1, BLOCK)
    one, other = socket.socketpair()
    with one, other:
        for place in range(ROUNDS):
            os.getppid()
            os.pwrite(descriptor, page, place * BLOCK)
            os.write(one.fileno(), MESSAGE)
            one.send(MESSAGE)
            os.read(other.fileno(), 2 * len(MESSAGE))
            with suppress(OSError):
                os.close(-1)
    child = os.fork()
    if child == 0:
        os.execv("/bin/true", ["true"])
    os.waitpid(child, 0)


def counted(stats: KernelStats) -> dict[str, int | None]:
    calls = calls_of(stats)
    return {
        **{name: calls.get(name, 0) for name in ("getppid", "pwrite64", "write", "sendto", "read")},
        "failed closes": errors_of(stats).get("close", 0),
        "sent": stats.net_tx_bytes,
        "received": stats.net_rx_bytes,
        "written": stats.write_bytes,
        "read from files": stats.read_bytes,
        "disk writes": stats.disk_writes,
        "to disk": stats.disk_write_bytes,
        "forks": stats.forks,
        "execs": stats.execs,
    }


EXPECTED = {
    **dict.fromkeys(("getppid", "pwrite64", "write", "sendto", "read", "failed closes"), ROUNDS),
    **dict.fromkeys(("sent", "received"), 2 * ROUNDS * len(MESSAGE)),
    "written": ROUNDS * BLOCK,
    "read from files": 0,
    "disk writes": ROUNDS,
    "to disk": ROUNDS * BLOCK,
    "forks": 1,
    "execs": 1,
}


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    """Return a descriptor of a file that is written past the page cache."""
    found = os.open(tmp_path / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    os.posix_fallocate(found, 0, ROUNDS * BLOCK)
    yield found
    os.close(found)


@pytest.mark.unprivileged
@pytest.mark.parametrize("syscalls", ["time", "count"])
@pytest.mark.parametrize("choose", [both, second_alone, first_alone])
def test_known_work_is_counted_once(
    loading: Loading, choose: Choose, syscalls: str, descriptor: int
) -> None:
    loading(choose)
    with tracing(syscalls=syscalls) as tracer:
        stats = on_loop(tracer, lambda: known_work(descriptor))

    assert counted(stats) == EXPECTED


@pytest.mark.unprivileged
def test_a_call_whose_begin_was_missed_lacks_its_time_alone(
    loading: Loading, descriptor: int
) -> None:
    loading(without("kt_sys_enter"))
    with tracing() as tracer:
        stats = on_loop(tracer, lambda: known_work(descriptor))

    assert counted(stats) == EXPECTED
    assert {call.ns for call in stats.top_syscalls or ()} == {0}


@pytest.mark.unprivileged
def test_bytes_that_were_missed_where_they_moved_are_still_those_of_a_socket(
    loading: Loading, descriptor: int
) -> None:
    loading(without("kt_sock_send", "kt_sock_recv"))
    with tracing() as tracer:
        stats = on_loop(tracer, lambda: known_work(descriptor))

    assert counted(stats) == EXPECTED


@contextmanager
def neighbours(count: int, work: Callable[[], None]) -> Iterator[None]:
    """Have so many processes do nothing but this work, on the CPUs of this thread."""
    with ExitStack() as undo:
        for _ in range(count):
            child = os.fork()
            if child == 0:
                signal.alarm(600)
                try:
                    while True:
                        work()
                finally:
                    os._exit(1)
            undo.callback(os.waitpid, child, 0)
            undo.callback(os.kill, child, signal.SIGKILL)
        yield


def exchanged(stats: KernelStats) -> tuple[Any, ...]:
    calls, length = calls_of(stats), len(MESSAGE)
    assert stats.net_tx_bytes is not None
    assert stats.net_rx_bytes is not None
    sent, received = stats.net_tx_bytes / length, stats.net_rx_bytes / length
    return (calls["getppid"], calls["sendto"], calls["recvfrom"], sent, received)


def missed_beside_neighbours() -> float:
    """Return how many percent are missed, of what is missed the most."""
    cpu = min(os.sched_getaffinity(0))
    with tracing() as tracer, on_cpu(cpu), neighbours(NEIGHBOURS, lambda: exchange(1000)):
        stats = on_loop(tracer, lambda: exchange(EXCHANGES))
    counts = exchanged(stats)
    assert max(counts) <= EXCHANGES
    assert (stats.write_bytes, stats.read_bytes) == (0, 0)
    return (EXCHANGES - min(counts)) / EXCHANGES * 100


def test_nothing_is_missed_on_a_busy_cpu() -> None:
    missed = missed_beside_neighbours()

    if preempts_programs():
        assert missed < MISSED_PERCENT
    else:
        assert missed == 0


def test_without_second_copies_more_is_missed(loading: Loading, require: Require) -> None:
    require("programs that lose their CPU", probe=programs_lose_their_cpu)
    loading(both, second_copies=False)

    assert missed_beside_neighbours() > MISSED_PERCENT
