"""A field of an event: where it is in the record, and how its bytes become a value."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, final

from kerneltrace_core.errors import OptionError
from kerneltrace_core.events.pyevent import KernelEvent

__all__ = ["REST", "Field"]

REST = -1  # a size or a count that the record's own length decides
SIZES = {"u": "BHIQ", "s": "bhiq", "U": "BHIQ", "S": "bhiq", "?": "BHIQ", "f": "__fd"}
MOST_DIMENSIONS = 8
MOST_BYTES = 1 << 30


@final
class Field:
    """Read one field of an event: a descriptor, immutable and thread-safe.

    ``kind`` is one letter: ``u`` and ``s`` integers without and with a sign, ``U`` and ``S`` the
    same in network byte order, ``f`` a float, ``?`` a bool (all of 1, 2, 4 or 8 bytes), ``c``
    text up to the first NUL, ``b`` bytes, ``n`` an event of the class ``convert``. ``size`` is one
    element's; REST: all that is left of the record (``c``, ``b`` and ``n``). ``shape`` makes nested
    tuples of elements; REST as its first count: as many as there are. ``convert`` is called with
    the raw value, or is a dict that maps it: what is not in there stays as it is.

    Raises OptionError for what fits no record, and when an event ends before the field.
    """

    __slots__ = (
        "_code",
        "_end",
        "bit_offset",
        "bit_size",
        "convert",
        "kind",
        "offset",
        "shape",
        "size",
    )

    offset: int
    size: int
    kind: str
    bit_offset: int
    bit_size: int
    shape: tuple[int, ...]
    convert: Any
    _code: str | None
    _end: int

    def __init__(
        self,
        offset: int,
        size: int,
        kind: str,
        bit_offset: int = 0,
        bit_size: int = 0,
        shape: tuple[int, ...] = (),
        convert: Callable[[Any], Any] | Mapping[Any, Any] | None = None,
    ) -> None:
        shape = tuple(shape)
        self._place(offset=offset, size=size, kind=kind, shape=shape, convert=convert)
        self._place(bit_offset=bit_offset, bit_size=bit_size, _code=None)
        place = f"describe field: kind {kind!r} of {size} bytes at {offset}"
        if kind not in ("u", "s", "U", "S", "?", "f", "c", "b", "n"):
            raise OptionError(f"{place}: no such kind")
        if offset < 0 or size < REST or max(offset, size) > MOST_BYTES:
            raise OptionError(f"{place}: no such place")
        self._place(_end=offset + self._check_shape(place))
        if size == REST and kind not in "cbn":
            raise OptionError(f"{place}: no number can be the rest of a record")
        if kind == "n" and not (isinstance(convert, type) and issubclass(convert, KernelEvent)):
            raise OptionError(f"{place}: {convert!r} is not an event class")
        if bit_size:
            if kind not in "us?" or shape or not 0 < bit_size <= 64 or not 0 <= bit_offset < 64:
                raise OptionError(f"{place}: no bit field of {bit_size} bits at bit {bit_offset}")
            self._place(_end=offset + (bit_offset + bit_size + 7) // 8)
        elif kind in SIZES:
            code = SIZES[kind][size.bit_length() - 1] if size in (1, 2, 4, 8) else "_"
            if code == "_":
                raise OptionError(f"{place}: no such number")
            self._place(_code=(">" if kind in "US" else "=") + code)

    def __get__(self, event: Any, owner: object = None) -> Any:
        """Return the event's value; of the class, the field itself."""
        if event is None:
            return self
        if not isinstance(event, KernelEvent):
            raise TypeError(f"read field: {type(event)!r} is not an event")
        data = event._data
        if len(data) < self._end:
            raise OptionError(
                f"read field: the event has {len(data)} bytes, the field ends at {self._end}"
            )
        if self.bit_size:
            return self._converted(self._bits(data))
        if self.shape:
            counts = self.shape
            if counts[0] == REST:
                each = self.size * math.prod(counts[1:])
                counts = (max(0, len(data) - self.offset) // each if each else 0, *counts[1:])
            return self._array(event, data, self.offset, counts)[0]
        return self._element(
            event, data, self.offset, len(data) - self.offset if self.size == REST else self.size
        )

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"change {name}: fields are immutable")

    def _place(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __set__(self, event: object, value: object) -> NoReturn:
        raise AttributeError("change field: events are immutable")

    def _check_shape(self, place: str) -> int:
        """Return how many bytes must be there."""
        if len(self.shape) > MOST_DIMENSIONS or any(
            count < (0 if i else REST) or count > MOST_BYTES for i, count in enumerate(self.shape)
        ):
            raise OptionError(f"{place}: no such shape {self.shape}")
        if self.shape and self.size <= 0:
            raise OptionError(f"{place}: no arrays of nothing")
        size = max(0, self.size)
        for count in reversed(self.shape):
            size *= max(0, count)
            if size > MOST_BYTES:
                raise OptionError(f"{place}: no such shape {self.shape}")
        # Where the record ends before a flexible array, none of it is there.
        return -self.offset if REST in self.shape else size

    def _array(self, event: Any, data: bytes, at: int, counts: tuple[int, ...]) -> tuple[Any, int]:
        values = []
        for _ in range(counts[0]):
            if len(counts) > 1:
                value, at = self._array(event, data, at, counts[1:])
            else:
                value = self._element(event, data, at, self.size)
                at += self.size
            values.append(value)
        return tuple(values), at

    def _element(self, event: Any, data: bytes, at: int, size: int) -> Any:
        if self._code:
            (value,) = struct.unpack_from(self._code, data, at)
            return self._converted(value != 0 if self.kind == "?" else value)
        raw = data[at : at + size]
        if self.kind == "n":
            return self.convert._make(raw, event.origin)
        if self.kind == "c":
            return self._converted(raw.partition(b"\0")[0].decode("utf-8", "backslashreplace"))
        return self._converted(raw)

    def _bits(self, data: bytes) -> int | bool:
        size = (self.bit_offset + self.bit_size + 7) // 8
        number = int.from_bytes(data[self.offset : self.offset + size], sys.byteorder)
        if sys.byteorder == "little":
            number >>= self.bit_offset
        else:
            number >>= 8 * size - self.bit_offset - self.bit_size
        number &= (1 << self.bit_size) - 1
        if self.kind == "s" and number >> (self.bit_size - 1):
            number -= 1 << self.bit_size
        return number != 0 if self.kind == "?" else number

    def _converted(self, value: Any) -> Any:
        if self.convert is None:
            return value
        if isinstance(self.convert, dict):
            return self.convert.get(value, value)
        return self.convert(value)
