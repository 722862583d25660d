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
from kerneltrace_core.kernel.btf import preempts_programs
from kerneltrace_core.requests import KernelStats, programs
from kerneltrace_core.requests.plan import SECOND, Plan
from traced import calls_of, errors_of, on_loop, tracing

pytestmark = [pytest.mark.kernel, pytest.mark.needs("thread_registration", "task_storage")]

BLOCK = 4096
MESSAGE = bytes(100)
NEIGHBOURS = 3
ROUNDS = 40
EXCHANGES = 60_000 if in_guest() else 100_000
# Of what three processes that do nothing else leave of a CPU; a guest is at its worst here, for
# programs take a large part of its time, and lose the CPU with its own virtual one.
MISSED_PERCENT = 1


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


def without_begins(plan: Plan) -> Plan:
    """Leave out what sees calls begin, which has no second copy."""
    kept = tuple(name for name in plan.programs if name != "kt_sys_enter")
    return replace(plan, programs=kept)


@pytest.fixture(params=[both, second_alone, first_alone, without_begins])
def copies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load second copies whatever the kernel, and all or some of the programs."""
    choose, plan_programs = request.param, programs.plan_programs

    def chosen(*of: Any) -> Plan:
        return choose(plan_programs(*of))

    monkeypatch.setattr(programs, "preempts_programs", lambda _btf_path: True)
    monkeypatch.setattr(programs, "plan_programs", chosen)


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
            other.recv(10, socket.MSG_PEEK)
            os.read(other.fileno(), 2 * len(MESSAGE))
            with suppress(OSError):
                os.close(-1)


@pytest.mark.usefixtures("copies")
@pytest.mark.unprivileged
@pytest.mark.parametrize("syscalls", ["time", "count"])
def test_known_work_is_counted_once(syscalls: str, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    os.posix_fallocate(descriptor, 0, ROUNDS * BLOCK)
    with tracing(syscalls=syscalls) as tracer:
        stats = on_loop(tracer, lambda: known_work(descriptor))
    os.close(descriptor)

    calls = calls_of(stats)
    names = ("getppid", "pwrite64", "write", "sendto", "recvfrom", "read")
    assert {name: calls[name] for name in names} == dict.fromkeys(names, ROUNDS)
    assert errors_of(stats)["close"] == ROUNDS
    sent = 2 * ROUNDS * len(MESSAGE)
    assert (stats.net_tx_bytes, stats.net_rx_bytes) == (sent, sent)
    assert (stats.write_bytes, stats.read_bytes) == (ROUNDS * BLOCK, 0)
    assert (stats.disk_writes, stats.disk_write_bytes) == (ROUNDS, ROUNDS * BLOCK)


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


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


@pytest.mark.any_kernel
def test_nothing_is_missed_on_a_busy_cpu() -> None:
    cpu = min(os.sched_getaffinity(0))
    with tracing() as tracer, on_cpu(cpu), neighbours(NEIGHBOURS, lambda: exchange(1000)):
        stats = on_loop(tracer, lambda: exchange(EXCHANGES))

    least = EXCHANGES
    if preempts_programs():
        least -= EXCHANGES * MISSED_PERCENT // 100
    assert all(least <= count <= EXCHANGES for count in exchanged(stats)), exchanged(stats)
