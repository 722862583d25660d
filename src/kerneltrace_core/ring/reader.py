"""RingReader: the consumer of one BPF ring buffer, on its own mapping of the pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kerneltrace_core._native import rings
from kerneltrace_core.errors import RingError
from kerneltrace_core.ring.owner import Owner
from kerneltrace_core.ring.protocol import CHUNK_BYTES, NO_LIMIT, NOTHING, Drained, Layout, Strided

__all__ = ["RingReader"]


class RingReader:
    """Read a BPF_MAP_TYPE_RINGBUF. Least kernel 5.8. Owns its mapping, not the descriptor.

    Thread-safe: one drain at a time; ``close`` may come from another thread and waits for a
    drain that runs (one chunk at most). The interpreter's lock is free meanwhile. In a forked
    child the pages are not mapped, and every use raises ClosedError. There must be one reader
    of a ring: two would take the same records.

    Raises RingError for a map of another kind, PrivilegeError where mapping is refused.
    """

    def __init__(self, map_fd: int, name: str) -> None:
        kind, self._size = rings.map_shape(map_fd, f"open ring {name}")
        if kind != rings.RINGBUF:
            raise RingError(f"open ring {name}: the map is no ring buffer (its type is {kind})")
        self._setup(rings.map_ring(map_fd, name), map_fd, name)

    def _setup(self, ring: rings.Ring, fd: int, name: str) -> None:
        self._ring = ring
        self._fd = fd
        self.name = name
        self._owner = Owner(f"ring {name}")
        # Reentrant: a collection of garbage or a signal handler may close the session in the midst
        # of a drain, which then drains once more within it.
        self._lock = threading.RLock()
        self._inside = 0
        self._result = rings.new_result()
        self._scratch_bytes = min(CHUNK_BYTES, max(self._size, 4096))
        self._scratch = rings.new_scratch(self._scratch_bytes)
        self._wanted: dict[Layout, rings.Wanted] = {}
        self._lender = rings.Lender()
        self._mapped = True
        self._memory: object = None

    @classmethod
    def over_memory(cls, positions: bytearray, data: bytearray, name: str) -> RingReader:
        """Read memory that looks like a ring's pages: two u64 positions, and the data twice.

        For tests of the reader itself; there is nothing to wait for (``fd`` is -1). Neither
        bytearray may be resized as long as the reader lives.
        """
        reader = cls.__new__(cls)
        reader._size = len(data) // 2
        reader._setup(rings.memory_ring(positions, data), -1, name)
        reader._mapped = False
        reader._memory = (positions, data)
        return reader

    @property
    def fd(self) -> int:
        """The map's descriptor: epoll finds it readable when there are records."""
        return self._fd

    @property
    def size_bytes(self) -> int:
        """Size of the data area, a power of two."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._owner.closed

    def drain(self, limit_bytes: int = CHUNK_BYTES, limit_records: int = NO_LIMIT) -> Drained:
        """Take what is there as frames, and give the space back. Never blocks.

        Stops before a record that is still being written; skips and counts what the program
        discarded. A record that is longer than ``limit_bytes`` is taken alone. Raises RingError
        if the ring holds what no kernel writes; it is then of no more use.
        """
        owner = self._owner
        owner.check("drain")
        # Spelled out, not by `_open`: this is what passes between an event and who waits for it.
        with self._lock:
            owner.check("drain")
            self._inside += 1
            try:
                return self._drain(limit_bytes, limit_records)
            finally:
                self._inside -= 1
                if owner.closed and not self._inside:
                    self._unmap()

    def _drain(self, limit_bytes: int, limit_records: int) -> Drained:
        result, scratch = self._result, self._scratch
        if self._inside > 1:  # the outer one has not looked at its own yet
            result, scratch = rings.new_result(), rings.new_scratch(self._scratch_bytes)
        limit_bytes = min(limit_bytes, self._scratch_bytes)
        rings.drain_ring(self._ring, scratch, limit_bytes, limit_records, result, self.name)
        records, discarded = result.records, result.discarded
        if not records:
            if not result.needed:
                more = result.more > 0
                return Drained(b"", 0, discarded, 0, more) if discarded or more else NOTHING
            if result.needed > self._scratch_bytes:
                self._scratch_bytes = result.needed
                self._scratch = rings.new_scratch(result.needed)
            drained = self._drain(result.needed, limit_records)
            return drained._replace(discarded=discarded + drained.discarded)
        frames = rings.copy_out(scratch, result.bytes)
        return Drained(frames, records, discarded, 0, result.more > 0)

    def drain_strided(self, layout: Layout, limit_records: int) -> Strided:
        """Take records of one type straight into memory of their own, and stop before any other.

        Some 6 ns for a record of 64 bytes. Never blocks. Raises RingError as ``drain`` does.
        """
        with self._open("drain"):
            wanted = self._wanted.get(layout)
            if wanted is None:
                wanted = self._wanted[layout] = rings.wanted(*layout)
            most = rings.pending_in_ring(self._ring) // (8 + -(-layout.size // 8) * 8)
            limit_records = min(limit_records, most)
            # Not a bytearray: to zero it costs as much as to fill it.
            data = self._lender.take(limit_records * layout.size)
            result = self._result if self._inside == 1 else rings.new_result()
            rings.drain_ring_strided(self._ring, wanted, data, limit_records, result, self.name)
            records, discarded, more = result.records, result.discarded, result.more > 0
        return Strided(self._lender.view(data, records * layout.size), records, discarded, more)

    def pending_bytes(self) -> int:
        """Return the bytes between the positions, headers and unfinished records included."""
        with self._open("look into"):
            return rings.pending_in_ring(self._ring)

    def spin(self, microseconds: int) -> bool:
        """Look for a record for so long, keeping a CPU busy; drains wait meanwhile."""
        with self._open("watch"):
            return rings.spin_on_ring(self._ring, microseconds * 1000)

    def listen(self, wake: Callable[[], None] | None) -> None:
        """Refuse nothing and do nothing: there is a descriptor."""

    def close(self) -> None:
        """Unmap the ring. May be repeated; in a forked child it touches nothing."""
        if self._owner.closed or self._owner.inherited:
            self.abandon()
            return
        with self._lock:
            self._owner.closed = True
            self._lender.close()
            if not self._inside:
                self._unmap()

    def abandon(self) -> None:
        """Refuse further use: in a forked child, where another thread may hold the lock."""
        self._owner.closed = True

    def _unmap(self) -> None:
        if self._mapped:
            self._mapped = False
            rings.unmap_ring(self._ring, self.name)

    @contextmanager
    def _open(self, act: str) -> Iterator[None]:
        """Keep the mapping for the block, even if `close` is called in it by this thread."""
        self._owner.check(act)
        with self._lock:
            self._owner.check(act)
            self._inside += 1
            try:
                yield
            finally:
                self._inside -= 1
                if self._owner.closed and not self._inside:
                    self._unmap()

    def __del__(self) -> None:
        # Made only in part: __init__ raised.
        if hasattr(self, "_mapped"):
            self.close()
