"""Switches that the tracepoint does not show: time off CPU goes to whom it was taken from.

Machines that hide a process from tracing do not show the switch from that process back to a
traced thread. What the programs then find is made here by hand: a thread that runs, whose state
says that it is off its CPU, and a CPU whose register is empty.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from kerneltrace_core._native import maps
from kerneltrace_core.requests import RequestTracer, engine, layout
from kerneltrace_core.requests.kernel_side import KernelSide, OwnPrograms
from kerneltrace_core.requests.programs import LoadedPrograms
from traced import on_cpu, on_loop, tracing

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("thread_registration", "task_storage"),
]

ENTRY, BEFORE, AFTER = 1, 7, 8  # of the region's threads; of its slots
WORD = 8
CELL = ENTRY * layout.THREAD_BYTES // WORD
OFF_NS = 3  # words behind the cell
STATE = struct.Struct("<IIQIIQQQQII")  # struct kt_task
REGISTER_BYTES = 64  # struct kt_cpu; the first word says whose it is
PREEMPTED = 15
WAITED_NS = 5_000_000
TRIALS = 50


class Steps:
    """How far two processes have come, in memory that they share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def reach(self, step: int) -> None:
        self._memory[0] = step

    def spin_until(self, step: int) -> None:
        """Wait without a system call, at which the programs would look."""
        while self._memory[0] < step:
            pass


@contextmanager
def undisturbed() -> Iterator[None]:
    """Have this thread run before all others of its CPU, where it may."""
    policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    try:
        os.sched_setscheduler(0, policy, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def hide_a_switch(pid: int, cpu: int, states: int, registers: int) -> None:
    """Have the programs take a thread for one that lost its CPU and waited 5 ms for the next."""
    thread, register = os.pidfd_open(pid), struct.pack("<I", cpu)
    *head, _off_ns, _cell, _wake_ns, run_delay_ns, _cause, epoch = STATE.unpack(
        maps.lookup(states, struct.pack("<i", thread), STATE.size) or b""
    )
    off_ns = time.monotonic_ns() - 2 * WAITED_NS
    run_delay_ns = run_delay(pid) - WAITED_NS
    state = STATE.pack(*head, off_ns, BEFORE, 0, run_delay_ns, PREEMPTED, epoch)
    maps.update(states, struct.pack("<i", thread), state)
    maps.update(registers, register, bytes(REGISTER_BYTES))


def run_delay(pid: int) -> int:
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as schedstat:
        return int(schedstat.read().split()[1])


def waited(words: memoryview, slot: int) -> int:
    first = (layout.SLOTS_OFFSET + slot * layout.SLOT_BYTES) // WORD + layout.BANK
    return words[first + layout.RUN_QUEUE_NS]


@pytest.mark.any_kernel
def test_time_off_cpu_is_charged_to_whom_the_thread_worked_for_when_it_went() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    assert len(cpus) >= 2, "this test needs a second CPU, for who changes the first one's register"
    mine, other = cpus[:2]
    programs = LoadedPrograms.load(("sched", "syscalls"), timed=True)
    # Its own, for the programs keep none of theirs once they are attached.
    own = [os.dup(programs._object.map_fd(name)) for name in ("kt_tasks", "kt_cpus")]
    states, registers = own
    with (
        ExitStack() as undo,
        closing(KernelSide.join_loaded(OwnPrograms(programs), programs, 0)) as side,
        on_cpu(mine),
    ):
        for fd in own:
            undo.callback(os.close, fd)
        programs.attach()
        side.register(ENTRY)
        words = side.memory.cast("Q")
        for _ in range(TRIALS):
            before = [waited(words, slot) for slot in (BEFORE, AFTER)]
            steps, parent = Steps(), os.getpid()
            child = os.fork()
            if child == 0:
                os.sched_setaffinity(0, {other})
                steps.reach(1)
                steps.spin_until(2)
                try:
                    hide_a_switch(parent, mine, states, registers)
                finally:
                    steps.reach(3)
                    os._exit(0)
            steps.spin_until(1)
            with undisturbed():
                words[CELL] = BEFORE
                steps.reach(2)
                steps.spin_until(3)
                words[CELL] = AFTER
                os.getppid()
                words[CELL] = 0
            os.waitpid(child, 0)
            found = [waited(words, slot) for slot in (BEFORE, AFTER)]
            charged = [now - then for now, then in zip(found, before, strict=True)]
            if sum(charged) == WAITED_NS:  # else it was switched in the middle of this
                break
        side.leave()

    assert charged == [WAITED_NS, 0]


@pytest.fixture
def tracer() -> Iterator[RequestTracer]:
    with tracing() as tracer:
        yield tracer


def test_a_border_has_the_programs_look_and_the_call_is_nobodys(tracer: RequestTracer) -> None:
    left = []

    def change_owner(off_ns: int) -> None:
        address = engine._chosen.cell_address()
        word = ctypes.c_uint64.from_address(address + OFF_NS * WORD)
        word.value = off_ns
        engine.pop(engine.push(None))
        left.append(word.value)

    seen = on_loop(tracer, lambda: change_owner(0))
    unseen = on_loop(tracer, lambda: change_owner(time.monotonic_ns()))

    assert left == [0, 0]
    assert seen.syscalls is not None
    assert unseen.syscalls == seen.syscalls
