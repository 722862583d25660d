"""ProcfsSampler: the kernel's public counters of a thread, read at every change of its owner.

What BPF programs add to a slot as it happens is added here as differences, at the borders between
requests, so attribution is as exact; there is less to attribute, and a border costs system calls
(some microseconds). Needs no privilege. Sources: getrusage(2) RUSAGE_THREAD, clock_gettime(2)
CLOCK_THREAD_CPUTIME_ID, /proc/thread-self/schedstat (Documentation/scheduler/sched-stats.rst),
/proc/thread-self/io (proc_pid_io(5)).
"""

from __future__ import annotations

import os
import resource
import threading
import time

from kerneltrace_core.requests import layout
from kerneltrace_core.requests.measures import Measures

__all__ = ["ProcfsSampler", "parse_io", "parse_schedstat"]

SCHEDSTAT = "/proc/thread-self/schedstat"
IO = "/proc/thread-self/io"
LONGEST = 512

OTHER = layout.BANK + layout.BLOCKED_NS + layout.CAUSES.index("other")
# Differences in the order of _Thread.read, and the word of the slot that each is added to.
PER_SLOT = (
    layout.READ_BYTES,
    layout.WRITE_BYTES,
    layout.DISK_READ_BYTES,
    layout.DISK_WRITE_BYTES,
)
PER_BANK = tuple(
    layout.BANK + word
    for word in (
        layout.RUN_QUEUE_NS,
        layout.CTX_VOLUNTARY,
        layout.CTX_INVOLUNTARY,
        layout.FAULTS,
        layout.MAJOR_FAULTS,
    )
)


def parse_schedstat(text: bytes) -> int:
    """Return the run queue time in ns: the second number."""
    return int(text.split()[1])


def parse_io(text: bytes) -> tuple[int, int, int, int]:
    """Return rchar, wchar, read_bytes and write_bytes."""
    values = dict(line.split(b": ") for line in text.splitlines())
    return (
        int(values[b"rchar"]),
        int(values[b"wchar"]),
        int(values[b"read_bytes"]),
        int(values[b"write_bytes"]),
    )


class _Thread:
    """One thread's open files and its last reading. Used on that thread only."""

    __slots__ = ("_io", "_own_reads", "_schedstat", "cpu_ns", "last", "now")

    def __init__(self, *, schedstat: bool, io: bool) -> None:
        self._schedstat = self._io = -1
        # Opened by the thread itself, and of it for ever.
        if schedstat:
            self._schedstat = os.open(SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
        if io:
            self._io = os.open(IO, os.O_RDONLY | os.O_CLOEXEC)
        self._own_reads = 0  # bytes that our own readings moved; they count as the thread's
        self.now = time.monotonic_ns()
        self.cpu_ns = time.thread_time_ns()
        self.last = self.read()

    def read(self) -> tuple[int, ...]:
        """Read the counters: four of the slot, then five of the bank."""
        moved = (0, 0, 0, 0)
        if self._io >= 0:
            text = os.pread(self._io, LONGEST, 0)
            read, *others = parse_io(text)
            moved = (read - self._own_reads, others[0], others[1], others[2])
            self._own_reads += len(text)
        queued = 0
        if self._schedstat >= 0:
            text = os.pread(self._schedstat, LONGEST, 0)
            queued = parse_schedstat(text)
            self._own_reads += len(text)
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        faults = usage.ru_minflt + usage.ru_majflt
        return (*moved, queued, usage.ru_nvcsw, usage.ru_nivcsw, faults, usage.ru_majflt)

    def close(self) -> None:
        for descriptor in (self._schedstat, self._io):
            if descriptor >= 0:
                os.close(descriptor)

    def __del__(self) -> None:
        # With the thread that it belongs to.
        self.close()


class ProcfsSampler:
    """Charges a region's slots from the kernel's public counters.

    ``enter`` and ``leave`` are called by a thread that begins or ends to work for requests,
    ``sample`` at each border. Thread-safe: every thread has its own reading. A file that this
    process may not read leaves its fields None.
    """

    def __init__(self, memory: memoryview) -> None:
        self._words = memory.cast("Q")
        self._local = threading.local()
        self._schedstat = _readable(SCHEDSTAT)
        self._io = _readable(IO)

    def measures(self) -> Measures:
        """Say what these sources measure."""
        return Measures(
            backend="procfs", ledger=True, files=self._io, disk_bytes=self._io, faults=True
        )

    def enter(self, index: int) -> None:
        """Begin to read the calling thread."""
        del index
        self._local.thread = _Thread(schedstat=self._schedstat, io=self._io)

    def leave(self) -> None:
        """Stop reading the calling thread."""
        self._local.__dict__.pop("thread", None)

    def sample(self, cell: int, now_ns: int) -> None:
        """Charge what happened since the last border to the slot that the cell names."""
        thread: _Thread | None = self._local.__dict__.get("thread")
        if thread is None:
            return
        cpu_ns = time.thread_time_ns()
        reading = thread.read()
        changes = [after - before for before, after in zip(thread.last, reading, strict=True)]
        wall = now_ns - thread.now
        blocked = wall - (cpu_ns - thread.cpu_ns) - changes[len(PER_SLOT)]
        thread.now, thread.cpu_ns, thread.last = now_ns, cpu_ns, reading
        start, bank = self._slot(cell)
        words = self._words
        # Nothing is called within a sum: it would let another thread in, and lose its.
        for word, change in zip(PER_SLOT, changes, strict=False):
            if change > 0:
                words[start + word] += change
        for word, change in zip(PER_BANK, changes[len(PER_SLOT) :], strict=True):
            words[start + bank + word] += change
        if blocked > 0:
            words[start + bank + OTHER] += blocked

    def _slot(self, cell: int) -> tuple[int, int]:
        index = cell & 0x7FFFFFFF
        start = (layout.SLOTS_OFFSET + index * layout.SLOT_BYTES) // 8
        if self._words[start] & 0xFFFFFFFF != cell >> 32:
            start = (layout.SLOTS_OFFSET + layout.SLOT_LATE * layout.SLOT_BYTES) // 8
        return start, (cell >> 31 & 1) * layout.BANK_WORDS


def _readable(path: str) -> bool:
    try:
        with open(path, "rb"):
            return True
    except OSError:
        return False
