"""The memory of an array map, shared with the kernel."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar, cast

from kerneltrace_core.errors import ClosedError, MapError, MapKeyError, OptionError
from kerneltrace_core.maps.codec import Codec

__all__ = ["MappedArray"]

V = TypeVar("V")

_open: weakref.WeakSet[MappedArray[object]] = weakref.WeakSet()
_lock = threading.RLock()
_watching_forks = False


class MappedArray(Generic[V]):
    """An array's elements as memory: ``[index]`` as values, ``memory`` as bytes. Thread-safe.

    Programs change it at any time: an element of more than 8 bytes may be read half old and half
    new. ``memory`` and views made of it are valid until ``close``, which refuses (MapError)
    while others still hold a view made of it. In a forked child it is closed.
    """

    def __init__(
        self,
        name: str,
        memory: mmap.mmap,
        codec: Codec,
        stride: int,
        count: int,
        *,
        writable: bool,
    ) -> None:
        self.name = name
        self.stride = stride
        self.writable = writable
        self._mapping = memory
        self._codec = codec
        self._count = count
        self._memory: memoryview | None = memoryview(memory)[: stride * count]
        _remember(cast("MappedArray[object]", self))

    def __enter__(self) -> MappedArray[V]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the memory is gone."""
        return self._memory is None

    @property
    def memory(self) -> memoryview:
        """Return all elements as bytes, ``stride`` apart (value_size rounded up to 8)."""
        if self._memory is None:
            raise ClosedError(f"use memory of map {self.name}: it is closed")
        return self._memory

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[V]:
        return (self[index] for index in range(self._count))

    def __getitem__(self, index: int) -> V:
        start = self._start(index)
        return cast("V", self._codec.decode(self.memory[start : start + self._codec.size]))

    def __setitem__(self, index: int, value: V) -> None:
        start = self._start(index)
        if not self.writable:
            raise MapError(
                f"write memory of map {self.name}: it is mapped to be read (writable=True)"
            )
        try:
            data = self._codec.encode(value)
        except OptionError as error:
            raise OptionError(f"write memory of map {self.name}: value: {error}") from None
        self.memory[start : start + len(data)] = data

    def _start(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise MapKeyError(
                f"use memory of map {self.name}: it has no {index} (0 to {self._count - 1})"
            )
        return index * self.stride

    def close(self) -> None:
        """Give the memory back; may be repeated."""
        if self._memory is None:
            return
        try:
            self._memory.release()
            self._memory = None
            self._mapping.close()
        except BufferError:
            self._memory = memoryview(self._mapping)[: self.stride * self._count]
            raise MapError(
                f"close memory of map {self.name}: a view of it is in use (release it first)"
            ) from None


def _remember(mapped: MappedArray[object]) -> None:
    global _watching_forks
    with _lock:
        _open.add(mapped)
        if not _watching_forks and hasattr(os, "register_at_fork"):
            _watching_forks = True
            os.register_at_fork(after_in_child=_abandon)


def _abandon() -> None:
    """In a forked child: it is the parent's memory, and would keep the map."""
    global _lock
    _lock = threading.RLock()
    for mapped in list(_open):
        try:
            mapped.close()
        except MapError:
            # Somebody's view is left; it stays readable, as the parent's does.
            mapped._memory = None
