"""FakeMapCalls: a kernel's maps in dictionaries, for tests without a kernel."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
from dataclasses import dataclass, field
from typing import NoReturn

from kerneltrace_core._native.map_records import Batch, RawInfo
from kerneltrace_core.btf.layout import MapLayout
from kerneltrace_core.errors import MapError, OptionError
from kerneltrace_core.maps.kinds import PER_CPU, MapFlags, MapType

__all__ = ["FakeMapCalls"]

FIRST_FD = 1 << 20  # no descriptor of a real file
U32 = 4

HASHES = (MapType.HASH, MapType.PERCPU_HASH, MapType.LRU_HASH, MapType.LRU_PERCPU_HASH)
LRU = (MapType.LRU_HASH, MapType.LRU_PERCPU_HASH)
ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY)
INDEXED = (*ARRAYS, MapType.ARRAY_OF_MAPS, MapType.PROG_ARRAY)
OF_MAPS = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)
QUEUES = (MapType.QUEUE, MapType.STACK)
BATCHED = (*HASHES, *ARRAYS, MapType.HASH_OF_MAPS)
WITHOUT_UPDATE = (MapType.STACK_TRACE, MapType.RINGBUF)
ANY, NEW, EXISTING, LOCK = 0, 1, 2, 4


@dataclass
class _FakeMap:
    info: RawInfo
    value_bytes: int
    entries: dict[bytes, bytes] = field(default_factory=dict)
    queue: list[bytes] = field(default_factory=list)
    frozen: bool = False


def _refuse(code: int) -> NoReturn:
    raise MapError(f"fake kernel: {os.strerror(code)}", errno=code)


class FakeMapCalls:
    """Answer for maps as the kernel does: the same results, the same errno. Thread-safe.

    ``create`` makes a map and returns its descriptor, for ``open_map(fd, ..., calls=fake)``;
    ``seen`` lists the names of the calls made; ``without`` takes some away, as older kernels
    lack them ("read_batch", "take", "open_id"). Of values with a
    bpf_spin_lock ``locked`` is not 0 once they were asked for under it.
    """

    def __init__(self, cpus: int = 4, *, without: tuple[str, ...] = ()) -> None:
        self.cpus = cpus
        self.without = without
        self.seen: list[str] = []
        self.locked = 0
        self.pins: dict[str, int] = {}
        self.descriptors: dict[int, _FakeMap] = {}
        self._maps: dict[int, _FakeMap] = {}
        self._next_fd = FIRST_FD
        self._lock = threading.RLock()

    # ---- making and finding maps --------------------------------------------------------

    def create(
        self,
        type: int,  # noqa: A002 - the kernel's own word for it
        name: str,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
        inner_fd: int | None = None,  # noqa: ARG002 - the shape of inner maps is not checked
    ) -> int:
        """Make a map; returns its descriptor."""
        self._note("create")
        with self._lock:
            map_id = len(self._maps) + 1
            info = RawInfo(type, map_id, key_size, value_size, max_entries, flags, name[:15])
            stride = (value_size + 7) // 8 * 8
            made = _FakeMap(info, stride * self.cpus if type in PER_CPU else value_size)
            if type in ARRAYS:
                for index in range(max_entries):
                    made.entries[index.to_bytes(U32, sys.byteorder)] = bytes(made.value_bytes)
            self._maps[map_id] = made
            return self._open(made)

    def create_like(self, layout: MapLayout) -> int:
        """Make the map that a layout describes; returns its descriptor."""
        return self.create(
            layout.type,
            layout.name,
            layout.key_size,
            layout.value_size,
            layout.max_entries,
            layout.flags,
        )

    def duplicate(self, fd: int) -> int:
        """Return a second descriptor."""
        with self._lock:
            if fd not in self.descriptors:
                raise OptionError(f"open map: descriptor {fd} is not one of a map")
            return self._open(self.descriptors[fd])

    def close(self, fd: int) -> None:
        """Close a descriptor; the number may then be another map's, as the kernel's are."""
        with self._lock:
            del self.descriptors[fd]
            self._next_fd = min(self._next_fd, fd)

    def open_id(self, map_id: int) -> int:
        """Open a map by its id."""
        self._note("open_id", errno.EPERM)
        with self._lock:
            return self._open(self._maps[map_id]) if map_id in self._maps else _refuse(errno.ENOENT)

    def pin(self, fd: int, path: str) -> None:
        """Give a map a name."""
        self._note("pin")
        if path in self.pins:
            _refuse(errno.EEXIST)
        self.pins[path] = self._map(fd).info.id

    def open_pinned(
        self,
        path: str,
        *,
        read_only: bool = False,  # noqa: ARG002 - what a descriptor allows is not checked
    ) -> int:
        """Open a map by its name."""
        self._note("open_pinned")
        if path not in self.pins:
            _refuse(errno.ENOENT)
        return self._open(self._maps[self.pins[path]])

    def _open(self, made: _FakeMap) -> int:
        fd = self._next_fd
        while fd in self.descriptors:
            fd += 1
        self._next_fd = fd + 1
        self.descriptors[fd] = made
        return fd

    def _map(self, fd: int) -> _FakeMap:
        return self.descriptors[fd] if fd in self.descriptors else _refuse(errno.EBADF)

    def _note(self, call: str, refusal: int = errno.EOPNOTSUPP) -> None:
        self.seen.append(call)
        if call in self.without:
            _refuse(refusal)

    # ---- facts --------------------------------------------------------------------------

    def possible_cpus(self) -> int:
        """Return how many CPUs there may be."""
        return self.cpus

    def info(self, fd: int) -> RawInfo:
        """Describe a map."""
        return self._map(fd).info

    def fdinfo(self, fd: int) -> list[str]:
        """Return what /proc would say."""
        found = self._map(fd)
        size = len(found.entries) * (found.info.key_size + found.value_bytes)
        return [f"memlock:\t{size}\n", f"frozen:\t{int(found.frozen)}\n"]

    def freeze(self, fd: int) -> None:
        """Forbid later changes."""
        self._note("freeze")
        found = self._map(fd)
        if found.frozen:
            _refuse(errno.EPERM)
        found.frozen = True

    def map_memory(self, fd: int, size: int, *, writable: bool) -> mmap.mmap:
        """Return memory of the map's size; what is written there is not seen by lookups."""
        self._note("map_memory")
        found = self._map(fd)
        if found.frozen and writable:
            _refuse(errno.EPERM)
        memory = mmap.mmap(-1, size)
        stride = (found.info.value_size + 7) // 8 * 8
        for index, value in enumerate(found.entries.values()):
            memory[index * stride : index * stride + len(value)] = value
        return memory

    # ---- entries ------------------------------------------------------------------------

    def lookup(
        self,
        fd: int,
        key: bytes | None,
        size: int,
        flags: int = 0,
    ) -> bytes | None:
        """Return what is stored under a key."""
        self._note("lookup")
        self.locked += flags & LOCK
        found = self._map(fd)
        with self._lock:
            if key is None:
                value = found.queue[0] if found.queue else None
            elif found.info.type == MapType.LPM_TRIE:
                value = _longest(found.entries, key)
            else:
                value = found.entries.get(key)
        return None if value is None else value[:size]

    def contains(self, fd: int, value: bytes) -> bool:
        """Tell whether a Bloom filter has a value."""
        self._note("contains")
        return value in self._map(fd).entries

    def update(self, fd: int, key: bytes | None, value: bytes, flags: int = 0) -> None:
        """Store a value."""
        self._note("update")
        self.locked += flags & LOCK
        flags &= ~LOCK
        found = self._map(fd)
        if found.frozen or found.info.flags & MapFlags.RDONLY:
            _refuse(errno.EPERM)
        if found.info.type in WITHOUT_UPDATE:
            _refuse(errno.EINVAL)
        with self._lock:
            if key is None:
                self._push(found, value, flags)
                return
            if flags == NEW and key in found.entries:
                _refuse(errno.EEXIST)
            if flags == EXISTING and key not in found.entries:
                _refuse(errno.ENOENT)
            if key not in found.entries and len(found.entries) >= found.info.max_entries:
                if found.info.type not in LRU:
                    trie = found.info.type == MapType.LPM_TRIE
                    _refuse(errno.ENOSPC if trie else errno.E2BIG)
                del found.entries[next(iter(found.entries))]
            if found.info.type in OF_MAPS:
                inner = self._map(int.from_bytes(value, sys.byteorder))
                value = inner.info.id.to_bytes(U32, sys.byteorder)
            found.entries[key] = value

    def _push(self, found: _FakeMap, value: bytes, flags: int) -> None:
        if found.info.type == MapType.BLOOM_FILTER:
            found.entries[value] = b""
            return
        stack = found.info.type == MapType.STACK
        if len(found.queue) >= found.info.max_entries:
            if flags != EXISTING:
                _refuse(errno.E2BIG)
            found.queue.pop(-1 if stack else 0)
        found.queue.insert(0 if stack else len(found.queue), value)

    def delete(self, fd: int, key: bytes) -> bool:
        """Delete a key."""
        self._note("delete")
        found = self._map(fd)
        if found.frozen:
            _refuse(errno.EPERM)
        if found.info.type in ARRAYS:
            _refuse(errno.EINVAL)
        with self._lock:
            return found.entries.pop(key, None) is not None

    def take(self, fd: int, key: bytes | None, size: int) -> bytes | None:
        """Return and delete."""
        self._note("take")
        found = self._map(fd)
        if found.info.type not in (*HASHES, *QUEUES):
            _refuse(errno.EOPNOTSUPP)
        with self._lock:
            if key is None:
                return found.queue.pop(0)[:size] if found.queue else None
            return found.entries.pop(key, None)

    def next_key(self, fd: int, key: bytes | None, size: int) -> bytes | None:
        """Return the key after another; after one that is gone, the first."""
        self._note("next_key")
        found = self._map(fd)
        with self._lock:
            keys = list(found.entries)
        if found.info.type in INDEXED and found.info.type not in ARRAYS:
            keys = [index.to_bytes(size, sys.byteorder) for index in range(found.info.max_entries)]
        after = keys.index(key) + 1 if key in keys else 0
        return keys[after] if after < len(keys) else None

    def read_batch(
        self,
        fd: int,
        start: bytes | None,
        count: int,
        key_size: int,  # noqa: ARG002
        value_size: int,  # noqa: ARG002
        *,
        take: bool = False,
        flags: int = 0,
    ) -> Batch:
        """Return entries from a position on. Each key is a bucket of its own, in order of age."""
        self._note("read_batch")
        self.locked += flags & LOCK
        found = self._map(fd)
        if found.info.type not in BATCHED or (take and found.info.type in ARRAYS):
            _refuse(errno.EOPNOTSUPP)
        with self._lock:
            keys = sorted(found.entries)
            if start is not None:
                keys = [key for key in keys if key > start[: found.info.key_size]]
            chosen, rest = keys[:count], keys[count:]
            values = [found.entries[key] for key in chosen]
            if take:
                for key in chosen:
                    del found.entries[key]
        position = chosen[-1].ljust(8, b"\0") if rest else None
        return Batch(b"".join(chosen), b"".join(values), len(chosen), position)


def _longest(entries: dict[bytes, bytes], key: bytes) -> bytes | None:
    """Return the value of the longest prefix that covers a key, which is no longer than it."""
    bits = int.from_bytes(key[:U32], sys.byteorder)
    width = 8 * (len(key) - U32)
    data = int.from_bytes(key[U32:], "big")
    best = -1
    value = None
    for candidate, stored in entries.items():
        length = int.from_bytes(candidate[:U32], sys.byteorder)
        same = int.from_bytes(candidate[U32:], "big") >> (width - length) == data >> (
            width - length
        )
        if best < length <= bits and same:
            best, value = length, stored
    return value
