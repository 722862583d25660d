"""Walk through a map's entries while programs change it: each pass ends, and repeats no key."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from kerneltrace_core.maps.calls import MapCalls
from kerneltrace_core.maps.descriptor import Descriptor
from kerneltrace_core.maps.kinds import MapType

__all__ = ["Entry", "Walk"]

Entry = tuple[bytes, bytes]

# One call's worth: some tens of microseconds.
MOST_ENTRIES = 256
MOST_BYTES = 64 * 1024
# Refusals of the first batch that mean: this kernel, or this type of map, has no batches.
NO_BATCHES = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)

# The kernel walks these by bucket, in one pass, each under its lock.
BY_BUCKET = frozenset(
    (
        MapType.HASH,
        MapType.LRU_HASH,
        MapType.PERCPU_HASH,
        MapType.LRU_PERCPU_HASH,
        MapType.HASH_OF_MAPS,
    )
)
# Keys are indexes, all of which are there, or may be.
FULL = frozenset((MapType.ARRAY, MapType.PERCPU_ARRAY))
BY_INDEX = FULL | frozenset(
    (
        MapType.ARRAY_OF_MAPS,
        MapType.PROG_ARRAY,
        MapType.CGROUP_ARRAY,
        MapType.SOCKMAP,
        MapType.XSKMAP,
        MapType.DEVMAP,
        MapType.CPUMAP,
        MapType.REUSEPORT_SOCKARRAY,
    )
)


@dataclass
class Walk:
    """How one map is walked. ``batches`` turns false once the kernel said that it has none."""

    calls: MapCalls
    descriptor: Descriptor
    type: MapType | int
    key_size: int
    value_bytes: int
    max_entries: int
    flags: int = 0  # of each lookup
    batches: bool = True

    def chunks(self) -> Iterator[list[Entry]]:
        """Yield the entries of one pass, some at a time; each chunk is one moment's truth.

        By batches of a hash table an entry that is there all the time comes exactly once, and no
        key twice. Without batches (before Linux 5.6, other types) it is key by key: still none
        twice, and after many deletions in front of it the pass may end early.
        """
        if self.batches and self.type in BY_BUCKET | FULL:
            chunks = self._batches(take=False)
            first = next(chunks, None)
            if first is not None:
                yield first
                yield from chunks
                return
            if self.batches:
                return
        for keys in self._keys():
            yield [(key, value) for key in keys if (value := self._lookup(key)) is not None]

    def take_chunks(self) -> Iterator[list[Entry]]:
        """Do as ``chunks`` and delete what is yielded.

        By batches, or with Linux 5.14, each is read and deleted in one step.
        """
        if self.batches and self.type in BY_BUCKET:
            chunks = self._batches(take=True)
            first = next(chunks, None)
            if first is not None:
                yield first
                yield from chunks
                return
            if self.batches:
                return
        for keys in self._keys():
            yield [(key, value) for key in keys if (value := self.take(key)) is not None]

    def take(self, key: bytes) -> bytes | None:
        """Return and delete an entry, in one step where the kernel can (hashes: Linux 5.14)."""
        with self.descriptor as fd:
            try:
                return self.calls.take(fd, key, self.value_bytes)
            except OSError as error:
                if error.errno not in NO_BATCHES:
                    raise
            value = self.calls.lookup(fd, key, self.value_bytes, self.flags)
            return value if value is not None and self.calls.delete(fd, key) else None

    def _lookup(self, key: bytes) -> bytes | None:
        with self.descriptor as fd:
            return self.calls.lookup(fd, key, self.value_bytes, self.flags)

    def _batches(self, *, take: bool) -> Iterator[list[Entry]]:
        """Yield batch by batch; nothing, and ``batches`` turned false, where there are none."""
        count = max(1, min(MOST_ENTRIES, MOST_BYTES // (self.key_size + self.value_bytes)))
        position: bytes | None = None
        while True:
            try:
                with self.descriptor as fd:
                    batch = self.calls.read_batch(
                        fd,
                        position,
                        count,
                        self.key_size,
                        self.value_bytes,
                        take=take,
                        flags=self.flags,
                    )
            except OSError as error:
                if error.errno == errno.ENOSPC and count <= self.max_entries * 2:
                    count *= 2  # one bucket has more than that
                    continue
                if error.errno in NO_BATCHES and position is None:
                    self.batches = False
                    return
                raise
            yield _entries(batch.keys, batch.values, batch.found, self.key_size, self.value_bytes)
            if batch.next is None:
                return
            position = batch.next

    def _keys(self) -> Iterator[list[bytes]]:
        if self.type in BY_INDEX:
            yield from self._indexes()
            return
        # When the key before is gone, the kernel begins again with the first: what was seen is
        # skipped, and so many steps are the most.
        seen: set[bytes] = set()
        steps = 4 * (self.max_entries + 1)
        key = self._next_key(None)
        while key is not None and steps > 0:
            found: list[bytes] = []
            with self.descriptor as fd:
                while key is not None and len(found) < MOST_ENTRIES and steps > 0:
                    steps -= 1
                    if key not in seen:
                        seen.add(key)
                        found.append(key)
                    # Found before what comes before it is yielded, and perhaps deleted.
                    key = self.calls.next_key(fd, key, self.key_size)
            yield found

    def _next_key(self, key: bytes | None) -> bytes | None:
        with self.descriptor as fd:
            return self.calls.next_key(fd, key, self.key_size)

    def _indexes(self) -> Iterator[list[bytes]]:
        for start in range(0, self.max_entries, MOST_ENTRIES):
            end = min(start + MOST_ENTRIES, self.max_entries)
            yield [index.to_bytes(4, sys.byteorder) for index in range(start, end)]


def _entries(keys: bytes, values: bytes, count: int, key_size: int, value_size: int) -> list[Entry]:
    return [
        (
            keys[index * key_size : (index + 1) * key_size],
            values[index * value_size : (index + 1) * value_size],
        )
        for index in range(count)
    ]
