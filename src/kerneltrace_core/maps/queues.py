"""Maps without keys: queues, stacks, Bloom filters."""

from __future__ import annotations

from typing import Generic, TypeVar, cast

from kerneltrace_core.btf.layout import MapLayout
from kerneltrace_core.errors import MapEmptyError, OptionError
from kerneltrace_core.maps.bpf_map import BpfMap
from kerneltrace_core.maps.calls import MapCalls
from kerneltrace_core.maps.codec import Codec
from kerneltrace_core.maps.descriptor import Descriptor

__all__ = ["BloomFilter", "QueueMap"]

V = TypeVar("V")

ANY, OLDEST_GOES = 0, 2  # BPF_ANY, BPF_EXIST


class _ValuesMap(BpfMap, Generic[V]):
    def __init__(
        self, descriptor: Descriptor, name: str, layout: MapLayout | None, calls: MapCalls
    ) -> None:
        super().__init__(descriptor, name, layout, calls)
        self._value = Codec(layout.value if layout else None, self._shape.value_size)

    def _encoded(self, value: V, act: str) -> bytes:
        try:
            return self._value.encode(value)
        except OptionError as error:
            raise OptionError(f"{act} map {self.name}: value: {error}") from None


class QueueMap(_ValuesMap[V]):
    """A queue (first in, first out) or a stack (last in, first out). Linux 4.20.

    The kernel tells neither how many values it has nor what they are: there is no ``len``, no
    iteration; ``drain`` takes all.
    """

    def push(self, value: V, *, overwrite: bool = False) -> None:
        """Add a value. Raises MapFullError; with ``overwrite`` the oldest goes instead."""
        data = self._encoded(value, "push to")
        try:
            with self._descriptor as fd:
                self._calls.update(fd, None, data, OLDEST_GOES if overwrite else ANY)
        except OSError as error:
            self._refused("push to", error)

    def pop(self) -> V:
        """Return and remove the next value, in one step. Raises MapEmptyError (an IndexError)."""
        try:
            with self._descriptor as fd:
                data = self._calls.take(fd, None, self._shape.value_size)
        except OSError as error:
            self._refused("pop from", error)
        return self._decoded(data, "pop from")

    def peek(self) -> V:
        """Return the next value and leave it there. Raises MapEmptyError."""
        try:
            with self._descriptor as fd:
                data = self._calls.lookup(fd, None, self._shape.value_size)
        except OSError as error:
            self._refused("peek at", error)
        return self._decoded(data, "peek at")

    def drain(self) -> list[V]:
        """Take values until there are none; no more than the map holds at once."""
        taken: list[V] = []
        while len(taken) < self._shape.max_entries:
            try:
                taken.append(self.pop())
            except MapEmptyError:
                break
        return taken

    def _decoded(self, data: bytes | None, act: str) -> V:
        if data is None:
            raise MapEmptyError(f"{act} map {self.name}: it is empty")
        return cast("V", self._value.decode(data))


class BloomFilter(_ValuesMap[V]):
    """A set that answers "certainly not" or "probably". Linux 5.16."""

    def add(self, value: V) -> None:
        """Add a value; it cannot be removed."""
        data = self._encoded(value, "add to")
        try:
            with self._descriptor as fd:
                self._calls.update(fd, None, data, ANY)
        except OSError as error:
            self._refused("add to", error)

    def __contains__(self, value: object) -> bool:
        data = self._encoded(cast("V", value), "look in")
        try:
            with self._descriptor as fd:
                return self._calls.contains(fd, data)
        except OSError as error:
            self._refused("look in", error)
