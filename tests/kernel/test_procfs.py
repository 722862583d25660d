"""The procfs backend: fewer numbers, and each of them right, without any privilege."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.pace import stretched, time_factor
from kerneltrace_core.requests import KernelStats, RequestTracer, procfs
from traced import (
    NS_PER_MS,
    Meter,
    Serve,
    close_to,
    in_thread,
    on_loop,
    run_python,
    serve,
    tracing,
    undisturbed,
)

pytestmark = pytest.mark.kernel

BLOCK = 4096
UNKNOWN = (
    *("blocked_by", "syscalls", "syscall_ns", "syscall_errors", "top_syscalls", "opens", "fsyncs"),
    *("fsync_ns", "execs", "forks", "connects", "net_rx_bytes", "net_tx_bytes", "disk_reads"),
    *("disk_writes", "disk_ns", "tcp_retransmits"),
)
# A border reads three sources one after the other, in a guest as slowly as all else.
BORDER_NS = int(400_000 * time_factor())
# So that what is measured is far more than its borders.
SPIN_NS = int(30 * NS_PER_MS * time_factor())


@pytest.fixture(scope="module")
def tracer() -> Iterator[RequestTracer]:
    with tracing(backend="procfs") as tracer:
        yield tracer


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, bytes(1 << 20))
    yield descriptor
    os.close(descriptor)


@pytest.mark.unprivileged
def test_it_says_what_it_is_and_knows_nothing_it_cannot(tracer: RequestTracer) -> None:
    stats = on_loop(tracer, lambda: None).as_dict()

    assert stats["backend"] == "procfs"
    assert stats["attribution"] == "exact"
    assert {name for name in UNKNOWN if stats[name] is not None} == set()
    assert tracer.health()["status"] == "degraded"


@pytest.mark.unprivileged
@pytest.mark.parametrize("doing", [on_loop, in_thread])
def test_bytes_read_and_written_are_exact(tracer: RequestTracer, file: int, doing: Serve) -> None:
    def work() -> None:
        for _ in range(23):
            os.pread(file, 1000, 0)
        for _ in range(7):
            os.pwrite(file, bytes(300), 0)

    stats = doing(tracer, work)

    assert stats.read_bytes is not None
    # In a new thread glibc's first allocation reads the list of CPUs.
    online = len(Path("/sys/devices/system/cpu/online").read_bytes())
    assert stats.read_bytes - 23_000 in ((0,) if doing is on_loop else (0, online))
    assert stats.write_bytes == 2_100


def test_bytes_that_went_to_the_disk_are_exact(
    tracer: RequestTracer, file: int, tmp_path: Path
) -> None:
    os.fsync(file)
    direct = os.open(tmp_path / "file", os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, BLOCK)

    def work() -> None:
        for place in range(9):
            os.pwritev(direct, [page], place * BLOCK)
        for place in range(5):
            os.preadv(direct, [page], place * BLOCK)

    stats = on_loop(tracer, work)
    os.close(direct)

    assert (stats.disk_write_bytes, stats.disk_read_bytes) == (9 * BLOCK, 5 * BLOCK)


def test_page_faults_are_those_that_rusage_counts(tracer: RequestTracer) -> None:
    # Neither shared, which some 5.10 count as major faults, nor huge pages, which are one fault.
    memory = mmap.mmap(-1, 1000 * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    meter = Meter()

    def touch() -> None:
        with meter:
            for page in range(1000):
                memory[page * BLOCK] = 1

    stats = on_loop(tracer, touch)
    memory.close()

    assert stats.minor_faults is not None
    assert meter.minor_faults >= 1000
    # The borders' own: a handful.
    assert meter.minor_faults <= stats.minor_faults <= meter.minor_faults + 30


@pytest.mark.parametrize("doing", [on_loop, in_thread])
def test_switches_and_blocked_time_are_what_rusage_and_the_clock_say(
    tracer: RequestTracer, doing: Serve
) -> None:
    def trial(meter: Meter) -> None:
        def work() -> None:
            with meter:
                for _ in range(5):
                    time.sleep(0.01)

        stats = doing(tracer, work)

        blocked = stats.blocked_ns if doing is on_loop else stats.thread_blocked_ns
        assert blocked is not None
        assert stats.ctx_voluntary is not None
        assert meter.voluntary <= stats.ctx_voluntary <= meter.voluntary + 6
        assert abs(blocked - meter.blocked_ns) <= max(BORDER_NS, meter.blocked_ns // 50)

    undisturbed(trial)


def test_cpu_time_is_the_threads_clock(tracer: RequestTracer) -> None:
    def trial(meter: Meter) -> None:
        def work() -> None:
            with meter:
                end = time.thread_time_ns() + SPIN_NS
                while time.thread_time_ns() < end:
                    pass

        stats = on_loop(tracer, work)

        assert stats.cpu_ns is not None
        assert stats.run_queue_ns is not None
        assert abs(stats.cpu_ns - meter.cpu_ns) <= max(2 * BORDER_NS, meter.cpu_ns // 20)
        assert abs(stats.run_queue_ns - meter.run_queue_ns) <= max(
            2 * BORDER_NS, meter.run_queue_ns // 10
        )

    undisturbed(trial)


def test_concurrent_requests_on_one_loop_have_each_their_own(
    tracer: RequestTracer, file: int
) -> None:
    async def main() -> list[KernelStats]:
        def handler(number: int) -> Callable[[], object]:
            async def reads() -> None:
                for _ in range(number):
                    os.pread(file, 100 + number, 0)
                    await asyncio.sleep(0)
                os.pwrite(file, bytes(number), 0)

            return reads

        handlers = [handler(number) for number in range(1, 33)]
        return await asyncio.gather(*(serve(tracer, each) for each in handlers))  # type: ignore[arg-type]

    seen = asyncio.run(main())

    for number, stats in enumerate(seen, 1):
        assert stats.read_bytes == number * (100 + number)
        assert stats.write_bytes == number


def test_the_ledger_sums_to_the_wall_time(tracer: RequestTracer) -> None:
    async def handler() -> None:
        time.sleep(0.003)
        await asyncio.sleep(0.005)
        await asyncio.to_thread(time.sleep, 0.004)
        await asyncio.gather(asyncio.sleep(0.001), asyncio.sleep(0.002))

    async def main() -> list[KernelStats]:
        return await asyncio.gather(*(serve(tracer, handler) for _ in range(8)))

    for stats in asyncio.run(main()):
        told = stats.as_dict()
        loop = ("cpu_ns", "run_queue_ns", "blocked_ns", "loop_wait_ns", "suspended_ns")
        summed = sum(told[name] for name in loop) + told["nested_ns"]
        threads = ("thread_cpu_ns", "thread_run_queue_ns", "thread_blocked_ns")
        assert close_to(summed, told["wall_ns"]) or told["cpu_ns"] == 0
        assert abs(summed - told["wall_ns"]) <= BORDER_NS
        assert abs(sum(told[name] for name in threads) - told["thread_ns"]) <= BORDER_NS


def test_live_and_marked_stats_hold_what_was_done_in_the_running_step(
    tracer: RequestTracer, file: int
) -> None:
    live: list[int | None] = []

    async def main() -> KernelStats:
        stats: KernelStats = tracer.open()
        assert stats.record is not None

        async def handler() -> None:
            for _ in range(10):
                os.pread(file, 100, 0)
            live.append(stats.read_bytes)
            stats.mark()
            os.pread(file, 50, 0)

        await stats.record.step(handler())
        tracer.finish(stats)
        return stats

    stats = asyncio.run(main())

    assert live == [1000]
    assert stats.read_bytes == 1000
    assert stats.background is not None
    assert stats.background.read_bytes == 50


def test_sockets_are_not_told_from_files_and_said_to_be_unknown(tracer: RequestTracer) -> None:
    here, there = socket.socketpair()

    with here, there:
        stats = on_loop(tracer, lambda: here.send(b"x"))

    assert (stats.net_tx_bytes, stats.net_rx_bytes) == (None, None)


def test_a_file_that_may_not_be_read_leaves_its_fields_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(procfs, "IO", str(tmp_path / "not there"))

    with tracing(backend="procfs") as tracer:
        stats = on_loop(tracer, lambda: time.sleep(stretched(0.002)))

    assert (stats.read_bytes, stats.write_bytes) == (None, None)
    assert (stats.disk_read_bytes, stats.disk_write_bytes) == (None, None)
    assert stats.ctx_voluntary is not None
    assert stats.blocked_ns is not None
    assert stats.blocked_ns > NS_PER_MS


@pytest.mark.needs("capability:cap_setuid")
def test_it_needs_no_privilege() -> None:
    printed = run_python(
        """
        import os
        from traced import on_loop, tracing
        descriptor = os.open("/dev/zero", os.O_RDONLY)
        with tracing(backend="procfs") as tracer:
            stats = on_loop(tracer, lambda: os.read(descriptor, 12345))
        print(stats.backend, stats.read_bytes)
        """,
        before=("setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all"),
    )

    assert printed.split() == ["procfs", "12345"]


def test_stopping_closes_what_each_thread_had_open(file: int) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def trace() -> int:
        with tracing(backend="procfs") as tracer:
            on_loop(tracer, lambda: None)
            in_thread(tracer, lambda: None)
        gc.collect()
        return descriptors()

    # This thread keeps what it had until it works for another tracer.
    first = trace()
    assert [trace() for _ in range(5)] == [first] * 5
