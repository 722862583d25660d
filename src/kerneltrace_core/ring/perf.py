"""PerfReader: a perf buffer, one part for each CPU, read as one ring."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kerneltrace_core._native import rings
from kerneltrace_core.errors import PrivilegeError, RingError
from kerneltrace_core.kernel.processors import online_processors
from kerneltrace_core.ring.owner import Owner
from kerneltrace_core.ring.protocol import CHUNK_BYTES, NO_LIMIT, Drained, Layout

__all__ = ["PerfReader"]

PARANOID = "/proc/sys/kernel/perf_event_paranoid"
LARGEST_SAMPLE = 1 << 16  # a record's size is a u16


def _remedy() -> str:
    try:
        paranoid = int(Path(PARANOID).read_text())
    except (OSError, ValueError):
        return " (add CAP_PERFMON)"
    if paranoid > 2:  # Debian's own level, which CAP_PERFMON does not lift
        return (
            f" (kernel.perf_event_paranoid is {paranoid}: add CAP_SYS_ADMIN, "
            "or sysctl kernel.perf_event_paranoid=2)"
        )
    return " (add CAP_PERFMON)"


class PerfReader:
    """Read a BPF_MAP_TYPE_PERF_EVENT_ARRAY, for kernels before 5.8. Owns descriptors.

    ``pages``: of data for each CPU, a power of two. The records of one CPU come in order, those
    of different CPUs do not. A record's ``origin`` is its CPU; its length is padded so that it
    and a u32 fill words of 8 bytes (perf_prepare_sample in kernel/events/core.c). ``sized``: the
    records begin with the header of kt_event.h, and the padding is taken off again.
    ``lost_by_cpu`` counts what the kernel had no space for.

    Thread-safe as RingReader is. CPUs that come online later are not read.
    Needs CAP_PERFMON. Raises RingError, PrivilegeError.
    """

    def __init__(self, map_fd: int, name: str, pages: int = 64, *, sized: bool = False) -> None:
        kind, entries = rings.map_shape(map_fd, f"open perf buffer {name}")
        if kind != rings.PERF_EVENT_ARRAY:
            raise RingError(
                f"open perf buffer {name}: the map is no perf event array (its type is {kind})"
            )
        with ExitStack() as stack:
            parts = []
            poll = stack.enter_context(select.epoll())
            for cpu in online_processors():
                if cpu >= entries:
                    break
                try:
                    part = rings.open_perf(map_fd, cpu, pages, name, sized=sized)
                except PrivilegeError as refusal:
                    raise PrivilegeError(f"{refusal}{_remedy()}", errno=refusal.errno) from None
                stack.callback(rings.close_perf, part, name)
                poll.register(rings.perf_fd(part), select.EPOLLIN)
                parts.append((cpu, part))
            self._setup(parts, name, pages * os.sysconf("SC_PAGESIZE"))
            self._poll = poll
            self._fd = poll.fileno()
            self._stack = stack.pop_all()

    def _setup(self, parts: list[tuple[int, rings.Perf]], name: str, size: int) -> None:
        self._parts = parts
        self._next = 0
        self._size = size
        self._fd = -1
        self.name = name
        self.lost_by_cpu = {cpu: 0 for cpu, _ in parts}
        self._owner = Owner(f"perf buffer {name}")
        # Reentrant: as RingReader's.
        self._lock = threading.RLock()
        self._inside = 0
        self._result = rings.new_result()
        self._scratch = rings.new_scratch(CHUNK_BYTES)
        self._stack = ExitStack()
        self._memory: object = None

    @classmethod
    def over_memory(
        cls, parts: dict[int, tuple[bytearray, bytearray]], name: str, *, sized: bool = False
    ) -> PerfReader:
        """Read memory that looks like a perf buffer: for each CPU the two positions, the data.

        For tests of the reader itself; there is nothing to wait for (``fd`` is -1).
        """
        reader = cls.__new__(cls)
        memory = [(cpu, rings.memory_perf(*part, cpu, sized=sized)) for cpu, part in parts.items()]
        reader._setup(memory, name, max(len(data) for _, data in parts.values()))
        reader._memory = parts
        return reader

    @property
    def fd(self) -> int:
        """A descriptor that is readable when some CPU's part has something."""
        return self._fd

    @property
    def size_bytes(self) -> int:
        """Size of one CPU's data area."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._owner.closed

    def drain(self, limit_bytes: int = CHUNK_BYTES, limit_records: int = NO_LIMIT) -> Drained:
        """Take what is there as frames, CPU by CPU. Never blocks.

        Begins each time with another CPU, so that a busy one does not starve the others.
        Raises RingError if a part holds what no kernel writes.
        """
        limit_bytes = min(max(limit_bytes, LARGEST_SAMPLE), CHUNK_BYTES)
        chunks: list[bytes] = []
        size = records = discarded = lost = 0
        more = False
        with self._open("drain"):
            self._next += 1
            taken, scratch = self._result, self._scratch
            if self._inside > 1:  # the outer one has not looked at its own yet
                taken, scratch = rings.new_result(), rings.new_scratch(CHUNK_BYTES)
            for turn in range(len(self._parts)):
                cpu, part = self._parts[(self._next + turn) % len(self._parts)]
                rings.drain_perf(
                    part,
                    scratch,
                    limit_bytes - size,
                    limit_records - records,
                    taken,
                    self.name,
                )
                if taken.records:
                    chunks.append(rings.copy_out(scratch, taken.bytes))
                size += taken.bytes
                records += taken.records
                discarded += taken.discarded
                lost += taken.lost
                more = more or taken.more > 0
                self.lost_by_cpu[cpu] += taken.lost
        return Drained(b"".join(chunks), records, discarded, lost, more)

    def drain_strided(self, layout: Layout, limit_records: int) -> None:  # noqa: ARG002
        """Return None: samples are taken as frames."""
        return

    def pending_bytes(self) -> int:
        """Return how many bytes wait, of all CPUs."""
        with self._open("look into"):
            return sum(rings.pending_in_perf(part) for _, part in self._parts)

    def spin(self, microseconds: int) -> bool:  # noqa: ARG002
        """Return whether there is something; it does not spin over all CPUs' parts."""
        return self.pending_bytes() > 0

    def listen(self, wake: Callable[[], None] | None) -> None:
        """Refuse nothing and do nothing: there is a descriptor."""

    def close(self) -> None:
        """Unmap and close everything. May be repeated.

        In a forked child only its copies of the descriptors are closed; nothing is mapped there.
        """
        if self._owner.closed:
            return
        if self._owner.inherited:
            self.abandon()
            return
        with self._lock:
            self._owner.closed = True
            if not self._inside:
                self._stack.close()

    def abandon(self) -> None:
        """In a forked child, where nothing is mapped and the lock may be held: close its copies."""
        if not self._owner.closed:
            self._owner.closed = True
            for _, part in self._parts:
                rings.close_perf(part, self.name)

    @contextmanager
    def _open(self, act: str) -> Iterator[None]:
        """Keep the mappings for the block, even if `close` is called in it by this thread."""
        self._owner.check(act)
        with self._lock:
            self._owner.check(act)
            self._inside += 1
            try:
                yield
            finally:
                self._inside -= 1
                if self._owner.closed and not self._inside:
                    self._stack.close()

    def __del__(self) -> None:
        if hasattr(self, "_stack"):
            self.close()
