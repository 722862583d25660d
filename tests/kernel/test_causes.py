"""Every way to wait shows under its cause, for as long as an outsider saw the thread off CPU."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness.pace import stretched, time_factor
from kerneltrace_core.requests import KernelStats, RequestTracer, layout
from traced import (
    NS_PER_MS,
    SWITCH_NS,
    WITHIN_NS,
    Meter,
    close_to,
    in_thread,
    on_loop,
    tracing,
    undisturbed,
)

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("thread_registration", "task_storage"),
]

# A wake-up is stamped where it begins; the scheduler's own statistics begin when it has crossed
# to the other CPU.
CROSSING_NS = int(30_000 * time_factor())
# How long what waits has to wait: longer than it takes to begin.
LATE_SECONDS = stretched(0.03)

Work = Callable[[], object]
Wait = Callable[[ExitStack, Path], Work]


@pytest.fixture(scope="module")
def tracer() -> Iterator[RequestTracer]:
    with tracing() as tracer:
        yield tracer


def late_byte(stack: ExitStack, descriptor: int) -> None:
    """Have another process write a byte late: a thread of ours would take the GIL as well."""
    command = ["sh", "-c", f"sleep {LATE_SECONDS}; printf x"]
    stack.enter_context(subprocess.Popen(command, stdout=descriptor))


def file_of(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    with path.open("rb+") as file:
        os.fsync(file)
    return path


def opened(stack: ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, flags)
    stack.callback(os.close, descriptor)
    return descriptor


def cold(stack: ExitStack, path: Path, size: int) -> int:
    """Return a descriptor of a file that is not in memory."""
    descriptor = opened(stack, file_of(path, size), os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return descriptor


def socket_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    return tuple(stack.enter_context(end) for end in socket.socketpair())  # type: ignore[return-value]


def tcp_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = stack.enter_context(socket.create_connection(server.getsockname()))
        return client, stack.enter_context(server.accept()[0])


# ---- the waits: each prepares, outside the request, and returns what waits -------------------


def wait_sleep(stack: ExitStack, folder: Path) -> Work:
    return lambda: time.sleep(LATE_SECONDS)


def wait_lock(stack: ExitStack, folder: Path) -> Work:
    lock = threading.Lock()
    lock.acquire()
    release = threading.Timer(LATE_SECONDS, lock.release)
    stack.callback(release.join)
    release.start()
    return lock.acquire


def wait_flock(stack: ExitStack, folder: Path) -> Work:
    path = file_of(folder / "locked", 1)
    holder, other = (opened(stack, path, os.O_RDWR) for _ in range(2))
    fcntl.flock(holder, fcntl.LOCK_EX)
    release = threading.Timer(LATE_SECONDS, fcntl.flock, (holder, fcntl.LOCK_UN))
    stack.callback(release.join)
    release.start()
    return lambda: fcntl.flock(other, fcntl.LOCK_EX)


def wait_fsync(stack: ExitStack, folder: Path) -> Work:
    descriptor = opened(stack, folder / "written", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, os.urandom(4 << 20))
    return lambda: os.fsync(descriptor)


def wait_cold_read(stack: ExitStack, folder: Path) -> Work:
    descriptor = cold(stack, folder / "cold", 1 << 20)
    return lambda: os.pread(descriptor, 1 << 20, 0)


def wait_direct_read(stack: ExitStack, folder: Path) -> Work:
    path = file_of(folder / "direct", 8 << 16)
    descriptor = opened(stack, path, os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, 1 << 16)  # aligned, as O_DIRECT wants it
    page[:] = bytes(len(page))
    return lambda: [os.preadv(descriptor, [page], i << 16) for i in range(8)]


def wait_cold_fault(stack: ExitStack, folder: Path) -> Work:
    descriptor = cold(stack, folder / "mapped", 2 << 20)
    mapped = stack.enter_context(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
    mapped.madvise(mmap.MADV_RANDOM)
    return lambda: [mapped[place] for place in range(0, len(mapped), 1 << 18)]


def wait_recv_unix(stack: ExitStack, folder: Path) -> Work:
    mine, theirs = socket_pair(stack)
    late_byte(stack, theirs.fileno())
    return lambda: mine.recv(1)


def wait_read_unix(stack: ExitStack, folder: Path) -> Work:
    mine, theirs = socket_pair(stack)
    late_byte(stack, theirs.fileno())
    return lambda: os.read(mine.fileno(), 1)


def wait_recv_tcp(stack: ExitStack, folder: Path) -> Work:
    mine, theirs = tcp_pair(stack)
    late_byte(stack, theirs.fileno())
    return lambda: mine.recv(1)


def wait_read_tcp(stack: ExitStack, folder: Path) -> Work:
    mine, theirs = tcp_pair(stack)
    late_byte(stack, theirs.fileno())
    return lambda: os.read(mine.fileno(), 1)


def wait_accept(stack: ExitStack, folder: Path) -> Work:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    late = threading.Timer(
        LATE_SECONDS, lambda: socket.create_connection(server.getsockname()).close()
    )
    stack.callback(late.join)
    late.start()
    return lambda: server.accept()[0].close()


def wait_pipe(stack: ExitStack, folder: Path) -> Work:
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    late_byte(stack, writer)
    os.close(writer)
    return lambda: os.read(reader, 1)


def wait_full_pipe(stack: ExitStack, folder: Path) -> Work:
    reader, writer = os.pipe()
    os.write(writer, bytes(65536))
    # Reads until we close, so that nothing is ever written to nobody.
    stack.enter_context(
        subprocess.Popen(["sh", "-c", f"sleep {LATE_SECONDS}; cat >/dev/null"], stdin=reader)
    )
    stack.callback(os.close, writer)
    os.close(reader)
    return lambda: os.write(writer, b"x")


def wait_epoll(stack: ExitStack, folder: Path) -> Work:
    poll = stack.enter_context(select.epoll())
    return lambda: poll.poll(LATE_SECONDS)


def wait_select(stack: ExitStack, folder: Path) -> Work:
    mine, _ = socket_pair(stack)
    return lambda: select.select([mine], [], [], LATE_SECONDS)


def wait_child(stack: ExitStack, folder: Path) -> Work:
    child = stack.enter_context(subprocess.Popen(["sleep", f"{LATE_SECONDS}"]))
    return child.wait


WAITS: dict[str, tuple[str, Wait]] = {
    "time.sleep": ("sleep", wait_sleep),
    "threading.Lock": ("lock", wait_lock),
    "flock": ("lock", wait_flock),
    "fsync": ("disk", wait_fsync),
    "cold pread": ("disk", wait_cold_read),
    "O_DIRECT read": ("disk", wait_direct_read),
    "cold mmap": ("fault", wait_cold_fault),
    "recv of a unix socket": ("net", wait_recv_unix),
    "read of a unix socket": ("net", wait_read_unix),
    "recv of a TCP socket": ("net", wait_recv_tcp),
    "read of a TCP socket": ("net", wait_read_tcp),
    "accept": ("net", wait_accept),
    "read of a pipe": ("pipe", wait_pipe),
    "write of a full pipe": ("pipe", wait_full_pipe),
    "epoll_wait": ("poll", wait_epoll),
    "select": ("poll", wait_select),
    "waitpid": ("child", wait_child),
}


def metered(
    serve: Callable[[RequestTracer, Work], KernelStats],
    tracer: RequestTracer,
    meter: Meter,
    work: Work,
) -> None:
    def run() -> None:
        with meter:
            work()

    serve(tracer, run)


def agreeing(bank: int, trial: Callable[[Meter], None]) -> Meter:
    """Repeat a trial until we and rusage count the same context switches.

    A switch may fall between the two readings of either end; then the next trial agrees.
    """
    seen: list[object] = []
    for _ in range(4):
        meter = Meter()
        trial(meter)
        # Of the measured thread alone: the loop's may wait for the GIL meanwhile.
        ours = tuple(
            meter.stats._bank(bank, word) for word in (layout.CTX_VOLUNTARY, layout.CTX_INVOLUNTARY)
        )
        theirs = meter.voluntary, meter.involuntary
        if ours == theirs:
            return meter
        seen.append((ours, theirs))
    raise AssertionError(f"never the same switches, ours and rusage's: {seen}")


@pytest.mark.times
@pytest.mark.parametrize("name", WAITS)
@pytest.mark.parametrize("bank", ["loop", "threads"])
def test_a_wait_shows_under_its_cause_for_as_long_as_the_thread_was_off_cpu(
    tracer: RequestTracer, tmp_path: Path, name: str, bank: str
) -> None:
    cause, prepare = WAITS[name]

    def trial(meter: Meter) -> None:
        with ExitStack() as stack:
            work = prepare(stack, tmp_path)
            serve = on_loop if bank == "loop" else in_thread
            metered(serve, tracer, meter, work)
        ours = meter.stats
        by_cause = ours.blocked_by if bank == "loop" else ours.thread_blocked_by
        queued = ours.run_queue_ns if bank == "loop" else ours.thread_run_queue_ns
        assert by_cause is not None
        assert queued is not None
        assert ours.ctx_voluntary is not None
        blocked = by_cause[cause]
        crossings = ours.ctx_voluntary * CROSSING_NS

        # The whole time off CPU, and the part of it in which nobody had woken the thread.
        off_cpu = sum(by_cause.values()) + queued
        assert close_to(off_cpu, meter.wall_ns - meter.cpu_ns)
        assert blocked <= meter.blocked_ns + WITHIN_NS
        assert close_to(blocked, meter.blocked_ns) or 0 <= meter.blocked_ns - blocked <= crossings
        assert blocked >= 0.99 * sum(by_cause.values())
        if cause not in ("disk", "fault"):
            assert blocked > LATE_SECONDS * 1e9 / 2

    undisturbed(trial)


def test_the_other_bank_stays_empty_on_the_event_loop(tracer: RequestTracer) -> None:
    stats = on_loop(tracer, lambda: time.sleep(stretched(0.001)))

    assert (stats.threads, stats.thread_ns, stats.thread_blocked_ns) == (0, 0, 0)
    assert stats.blocked_by is not None
    assert stats.blocked_by["sleep"] > NS_PER_MS


def test_a_threads_wait_is_not_the_event_loops(tracer: RequestTracer) -> None:
    stats = in_thread(tracer, lambda: time.sleep(stretched(0.02)))

    assert stats.threads == 1
    assert stats.blocked_by is not None
    assert stats.blocked_by["sleep"] == 0
    assert stats.thread_blocked_by is not None
    assert stats.thread_blocked_by["sleep"] > 20 * NS_PER_MS


def switch_often() -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(["sh", "-c", "printf a; sleep 0.01; printf b"], stdout=writer):
        os.close(writer)
        while os.read(reader, 1):
            time.sleep(0.001)
    os.close(reader)
    for _ in range(20):
        time.sleep(0.0005)
        os.sched_yield()


@pytest.mark.parametrize("serve", [on_loop, in_thread])
@pytest.mark.unprivileged
def test_context_switches_are_those_that_rusage_counts(
    tracer: RequestTracer, serve: Callable[[RequestTracer, Work], KernelStats]
) -> None:
    meter = agreeing(
        int(serve is in_thread), lambda meter: metered(serve, tracer, meter, switch_often)
    )

    assert meter.voluntary >= 20


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@contextmanager
def sharing_a_cpu() -> Iterator[None]:
    """Pin this thread to a CPU that another process keeps busy."""
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)
    os.sched_setaffinity(0, {cpu})
    hog = subprocess.Popen(["sh", "-c", "while :; do :; done"])  # inherits the affinity
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        hog.send_signal(signal.SIGKILL)
        hog.wait()


@pytest.mark.parametrize("bank", ["loop", "threads"])
def test_waiting_for_a_cpu_beside_a_hog_is_run_queue_time(tracer: RequestTracer, bank: str) -> None:
    def beside_a_hog(meter: Meter) -> None:
        def work() -> None:
            with sharing_a_cpu(), meter:
                spin(LATE_SECONDS)

        (on_loop if bank == "loop" else in_thread)(tracer, work)

    meter = agreeing(int(bank == "threads"), beside_a_hog)

    ours = meter.stats
    queued = ours.run_queue_ns if bank == "loop" else ours.thread_run_queue_ns
    on_cpu = ours.cpu_ns if bank == "loop" else ours.thread_cpu_ns
    assert queued is not None
    assert on_cpu is not None
    assert meter.run_queue_ns > 10 * NS_PER_MS
    slack = SWITCH_NS * (meter.voluntary + meter.involuntary)
    assert abs(queued - meter.run_queue_ns) <= max(WITHIN_NS, meter.run_queue_ns // 100) + slack
    assert abs(on_cpu - meter.cpu_ns) <= max(2 * WITHIN_NS, meter.cpu_ns // 50) + slack
    assert ours.ctx_involuntary
