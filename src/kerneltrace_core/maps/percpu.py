"""Maps with a value for each CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

from kerneltrace_core.errors import OptionError
from kerneltrace_core.maps.arrays import ArrayMap
from kerneltrace_core.maps.mapping import HashMap, KeyedMap

__all__ = ["PerCpuArrayMap", "PerCpuHashMap", "PerCpuMap"]

K = TypeVar("K")
V = TypeVar("V")


class PerCpuMap(KeyedMap[K, "list[V]"]):
    """A map whose values are lists: one for each CPU that the kernel may ever have, by number.

    Setting takes such a list, of exactly ``cpus`` values; ``fill`` sets them all alike. A value
    is consistent for each CPU, not over all of them: programs go on while it is read.
    """

    @property
    def cpus(self) -> int:
        """How many values there are: possible CPUs, not only those that are online."""
        return self._calls.possible_cpus()

    def _stride(self) -> int:
        return (self._shape.value_size + 7) & ~7

    def _value_bytes(self) -> int:
        return self._stride() * self.cpus

    def _decode_value(self, data: bytes) -> list[V]:
        size, stride = self._shape.value_size, self._stride()
        return [
            self._value.decode(data[start : start + size]) for start in range(0, len(data), stride)
        ]

    def _encode_value(self, value: Any) -> bytes:
        if isinstance(value, bytes | bytearray | memoryview):
            if len(value) != self._walk.value_bytes:
                raise OptionError(
                    f"{len(value)} bytes given, {self.cpus} CPUs have {self._walk.value_bytes}"
                )
            return bytes(value)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise OptionError(
                f"{value!r} is no list of one value for each CPU (fill() sets all alike)"
            )
        if len(value) != self.cpus:
            raise OptionError(f"{len(value)} values given, there are {self.cpus} possible CPUs")
        stride = self._stride()
        encoded = []
        for cpu, each in enumerate(value):
            try:
                encoded.append(self._value.encode(each).ljust(stride, b"\0"))
            except OptionError as error:
                raise OptionError(f"CPU {cpu}: {error}") from None
        return b"".join(encoded)

    def fill(self, key: K, value: V) -> None:
        """Set the values of all CPUs to one."""
        try:
            encoded = self._value.encode(value)
        except OptionError as error:
            raise OptionError(f"fill map {self.name}: value: {error}") from None
        whole = encoded.ljust(self._stride(), b"\0") * self.cpus
        self._update(key, self._as_key(key, "fill"), whole, 0, "fill")

    def sum(self, key: K) -> V:
        """Return the sum over all CPUs. Raises MapKeyError, OptionError if they are no numbers."""
        return cast("V", self._sum(self[key]))

    def sums(self) -> Iterator[tuple[K, V]]:
        """Yield each key with the sum over all CPUs."""
        for key, values in self.items():
            yield key, self._sum(values)

    def _sum(self, values: list[Any]) -> Any:
        if not all(isinstance(each, int | float) for each in values):
            raise OptionError(
                f"sum map {self.name}: {self._value.what} is no number (sum a field of it: "
                f"sum(each.field for each in values))"
            )
        return sum(values)


class PerCpuHashMap(PerCpuMap[K, V], HashMap[K, "list[V]"]):
    """A hash table of a list for each key."""


class PerCpuArrayMap(PerCpuMap[int, V], ArrayMap["list[V]"]):
    """An array of lists; ``clear`` sets all to zeroes."""
