"""Arrays: maps whose keys are indexes, all of which are always there."""

from __future__ import annotations

import errno
import mmap
import operator
import sys
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

from kerneltrace_core.errors import MapKeyError, OptionError
from kerneltrace_core.maps.kinds import MapFlags
from kerneltrace_core.maps.mapped import MappedArray
from kerneltrace_core.maps.mapping import KeyedMap

__all__ = ["ArrayMap", "IndexedMap"]

V = TypeVar("V")


class IndexedMap(KeyedMap[int, V]):
    """Keys are 0 to max_entries - 1; others are MapKeyError, without asking the kernel."""

    def _encode_key(self, key: Any) -> bytes:
        if isinstance(key, bytes | bytearray | memoryview):
            return super()._encode_key(key)
        try:
            index = operator.index(key)
        except TypeError:
            raise OptionError(f"{key!r} is no index") from None
        if not 0 <= index < self._shape.max_entries:
            raise MapKeyError(
                f"use map {self.name}: it has no {index} (0 to {self._shape.max_entries - 1})"
            )
        return index.to_bytes(4, sys.byteorder)

    def _decode_key(self, data: bytes) -> int:
        return int.from_bytes(data, sys.byteorder)

    def __contains__(self, key: object) -> bool:
        try:
            return super().__contains__(key)
        except MapKeyError:
            return False


class ArrayMap(IndexedMap[V]):
    """An array: nothing can be added or deleted; ``clear`` and ``fill`` set all elements.

    ``len`` is max_entries, at no cost. If it was made with BPF_F_MMAPABLE, ``mapped`` gives its
    memory.
    """

    def __len__(self) -> int:
        return self._shape.max_entries

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __bool__(self) -> bool:
        return True

    def __delitem__(self, key: int) -> None:
        self._fixed("delete from")

    def pop(self, *_: Any) -> NoReturn:
        """Refuse: an array's elements stay."""
        self._fixed("take from")

    def popitem(self) -> NoReturn:
        """Refuse: an array's elements stay."""
        self._fixed("take from")

    def drain(self) -> NoReturn:
        """Refuse: an array's elements stay."""
        self._fixed("drain")

    def clear(self) -> None:
        """Set every element to zeroes."""
        zeroes = bytes(self._walk.value_bytes)
        for index in range(len(self)):
            self._update(index, self._encode_key(index), zeroes, 0, "clear")

    def mapped(self, *, writable: bool = False) -> MappedArray[V]:
        """Map the elements into this process's memory; close it, or use it in ``with``.

        Reading and writing there takes no system call. It stays valid when the map, or its
        session, is closed. Raises UnsupportedError if the map was not made with BPF_F_MMAPABLE,
        MapError if it is frozen and was to be written. Linux 5.5.
        """
        if not self._shape.flags & MapFlags.MMAPABLE:
            self._cannot("map memory of", "it was not made with BPF_F_MMAPABLE (map_flags)")
        # Elements are padded to a multiple of 8 bytes, and the whole to pages.
        stride = (self._shape.value_size + 7) & ~7
        size = stride * len(self)
        pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            with self._descriptor as fd:
                memory = self._calls.map_memory(fd, pages, writable=writable)
        except OSError as error:
            if error.errno is None:
                error.errno = errno.EINVAL
            self._refused("map memory of", error)
        return MappedArray(self.name, memory, self._value, stride, len(self), writable=writable)

    def _fixed(self, act: str) -> NoReturn:
        self._cannot(act, "an array's elements are always there (set them, or clear() it)")
