"""Requests without a server: work run as a request's, and what an outsider measured meanwhile."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.bpf_objects import held_objects
from harness.pace import in_guest, time_factor
from kerneltrace_core.requests import KernelStats, RequestTracer, TracerOptions, current, engine
from kerneltrace_core.requests.measures import Measures

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

NS_PER_MS = 1_000_000
# The promise: within 1% or 100 us; in a guest the same work takes as much longer as all else.
WITHIN_NS, WITHIN_PERCENT = int(100_000 * time_factor()), 1

# For stats of a part of a request.
EVERYTHING = KernelStats.of_block(
    b"", Measures("bpf", *(True for _ in fields(Measures) if _.name != "backend"))
)

# A context switch takes some microseconds itself, more on a busy machine; whether they belong to
# the thread that goes or to the one that comes is answered differently by us and by the scheduler.
SWITCH_NS = int(25_000 * time_factor())

Serve = Callable[[RequestTracer, Callable[[], Any]], KernelStats]
Handler = Callable[[], Coroutine[Any, Any, Any]]


def close_to(measured: int, truth: int) -> bool:
    """Tell whether a time is within 1% or 100 us of another."""
    return abs(measured - truth) <= max(WITHIN_NS, abs(truth) * WITHIN_PERCENT // 100)


@contextmanager
def tracing(**options: Any) -> Iterator[RequestTracer]:
    """Trace this process while the block runs; BPF unless the options say otherwise."""
    chosen: dict[str, Any] = {"backend": "bpf", "required": True, **options}
    tracer = RequestTracer(TracerOptions(**chosen))
    tracer.start()
    try:
        yield tracer
    finally:
        tracer.stop()


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Keep this thread on one CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


async def serve(tracer: RequestTracer, handler: Handler) -> KernelStats:
    """Run a handler as a request of the running loop, as an integration does."""
    tracer.adopt_loop()
    stats: KernelStats = tracer.open()
    assert stats.record is not None
    token = current.set(stats.record)
    try:
        await stats.record.step(handler())
    finally:
        current.reset(token)
        tracer.finish(stats)
    return stats


def on_loop(tracer: RequestTracer, work: Callable[[], Any]) -> KernelStats:
    """Do work as a request, on the event loop's thread."""

    async def handler() -> None:
        work()

    return asyncio.run(serve(tracer, handler))


def in_thread(tracer: RequestTracer, work: Callable[[], Any]) -> KernelStats:
    """Do work as a request, on a thread of the loop's pool."""

    async def handler() -> None:
        await asyncio.to_thread(work)

    return asyncio.run(serve(tracer, handler))


def during(serve: Serve, tracer: RequestTracer, work: Callable[[], Any]) -> KernelStats:
    """Do work as a request and return the stats of the work alone.

    Without what asyncio did to hand it over: a wake-up of the loop is a byte on a socket.
    """
    meter = Meter()

    def run() -> None:
        # A thread's first allocation beyond Python's own has glibc read the number of CPUs.
        bytearray(1 << 12)
        with meter:
            work()

    serve(tracer, run)
    return meter.stats


def undisturbed(trial: Callable[[Meter], None]) -> None:
    """Run a trial; up to twice again if it failed while others took the CPU.

    A hypervisor that takes it shows in no counter of a thread: its clock merely stands still.
    """
    for again in (True, True, False):
        meter = Meter()
        stolen = stolen_ticks()
        try:
            trial(meter)
        except AssertionError:
            # Ours begins at the wake-up: a virtual CPU that slept comes late for it.
            waited = (meter.stats.run_queue_ns or 0) + (meter.stats.thread_run_queue_ns or 0)
            taken = max(waited, meter.run_queue_ns) > WITHIN_NS // 2 or meter.involuntary
            if not (again and (taken or may_have_been_stolen(stolen))):
                raise
        else:
            return


def may_have_been_stolen(before: int) -> bool:
    """Tell whether the CPU was taken since ``stolen_ticks``; an emulated guest is not told."""
    return in_guest() or stolen_ticks() != before


def stolen_ticks() -> int:
    """Return how many ticks the hypervisor has taken from this machine."""
    return int(Path("/proc/stat").read_text().split()[8])


def calls_of(stats: KernelStats) -> dict[str, int]:
    """Return how often each system call was made."""
    return {call.name: call.calls for call in stats.top_syscalls or ()}


def errors_of(stats: KernelStats) -> dict[str, int]:
    """Return how often each system call failed, of those that failed and are the work's own.

    Not futex: the interpreter's lock is waited for with it, and it fails by design if the lock is
    free again before the wait begins (EAGAIN) or is not given up within 5 ms (ETIMEDOUT).
    """
    failed = {call.name: call.errors for call in stats.top_syscalls or () if call.errors}
    assert stats.syscall_errors == sum(failed.values())
    failed.pop("futex", None)
    return failed


class CpuClock:
    """The time that the calling thread, which does not sleep, has had a CPU; stolen time too.

    The thread's own clock stands still while a hypervisor has taken the CPU, of which
    /proc/stat tells only in ticks of 10 ms, and our programs, like all of BPF, read a clock that
    goes on. What is neither a wait in the run queue nor sleep is on a CPU by that clock.
    """

    def __init__(self) -> None:
        self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def read_ns(self) -> int:
        """Return the clock: only differences mean something, on the thread that made it."""
        queued = self._queued_ns()
        while True:
            now, before = time.monotonic_ns(), queued
            queued = self._queued_ns()
            if queued == before:  # no switch fell between the two
                return now - queued

    def _queued_ns(self) -> int:
        return int(os.pread(self._fd, 100, 0).split()[1])

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)


def _snapshot() -> bytes | None:
    record = engine.current()
    return None if record is None else record.snapshot()


class Meter:
    """What happened to the calling thread inside ``with``: by public counters, and by ours."""

    stats: KernelStats
    wall_ns = cpu_ns = run_queue_ns = voluntary = involuntary = minor_faults = major_faults = 0

    def __enter__(self) -> Meter:
        self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._before = self._read()
        self._begun = _snapshot()
        return self

    def __exit__(self, *error: object) -> None:
        ended = _snapshot()
        after = self._read()
        if self._begun is not None and ended is not None:
            self.stats = KernelStats.between(self._begun, ended, like=EVERYTHING)
        os.close(self._fd)
        changes = [new - old for old, new in zip(self._before, after, strict=True)]
        self.wall_ns, self.cpu_ns, self.run_queue_ns = changes[:3]
        self.voluntary, self.involuntary, self.minor_faults, self.major_faults = changes[3:]

    def _read(self) -> tuple[int, ...]:
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        queued = int(os.pread(self._fd, 100, 0).split()[1])
        cpu_ns = time.thread_time_ns()
        now = time.monotonic_ns()
        switches = usage.ru_nvcsw, usage.ru_nivcsw
        return (now, cpu_ns, queued, *switches, usage.ru_minflt, usage.ru_majflt)

    @property
    def blocked_ns(self) -> int:
        """Neither on a CPU nor waiting for one."""
        return self.wall_ns - self.cpu_ns - self.run_queue_ns


def run_python(source: str, *arguments: str, before: tuple[str, ...] = (), **options: Any) -> str:
    """Run a script in a process of its own and return what it printed; fail if it failed."""
    done = subprocess.run(
        [*before, sys.executable, "-c", textwrap.dedent(source), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=Path(__file__).parent,
        **options,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    printed: str = done.stdout
    return printed


def count_in_worker(times: int) -> int:
    """Make so many system calls as a request of this process's own tracer; return its count."""
    tracer = RequestTracer.shared(TracerOptions(backend="bpf", required=True))
    tracer.start()

    def work() -> None:
        for _ in range(times):
            os.getppid()

    return calls_of(on_loop(tracer, work))["getppid"]


class AtOnce:
    """What the workers of a pool begin with, so that each of them gets one task."""

    barrier: Barrier

    @classmethod
    def begin(cls, barrier: Barrier) -> None:
        """Note, in a worker, where all of them meet."""
        cls.barrier = barrier


def joined_in_worker(times: int) -> tuple[int, str, int, list[int]]:
    """Count in a worker of ``AtOnce``; return the count, how and where it joined, and its links."""
    counted = count_in_worker(times)
    tracer = RequestTracer.shared(TracerOptions(backend="bpf", required=True))
    side = tracer.health()["kernel_side"]
    links = [number for kind, number in held_objects([os.getpid()]) if kind == "link_id"]
    AtOnce.barrier.wait(30 * time_factor())
    return counted, side["joined"], side["index"], sorted(links)
