"""Keys and values of maps: Python objects to the bytes of their C type, and back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kerneltrace_core.btf.layout import (
    ArrayLayout,
    FieldLayout,
    Scalar,
    StructLayout,
    TypeLayout,
    c_name,
)
from kerneltrace_core.errors import OptionError
from kerneltrace_core.maps.encoding import Encode, encoder, raw_bytes

if TYPE_CHECKING:
    from kerneltrace_core.events.engine import KernelEvent

__all__ = ["Codec"]

Decode = Callable[[bytes], Any]


class Codec:
    """Encode and decode one C type. Immutable, thread-safe, no system calls.

    Decoded are: numbers to int, bool or float, enums to their IntEnum (int for a value without
    a name), ``char[N]`` to str, ``__u8[N]`` to bytes, other arrays to tuples, structs to events.
    Where no type is known (None) both sides are ``size`` bytes. What is encoded from what: see
    ``encoder``. ``lossless``: text that str would not give back the same comes as bytes, for keys.

    Raises OptionError for what does not fit, with both numbers where it is the size.
    """

    __slots__ = ("_decode", "_encode", "layout", "size", "what")

    def __init__(
        self, layout: TypeLayout | None, size: int | None = None, *, lossless: bool = False
    ) -> None:
        self.layout = layout
        if layout is None:
            if size is None:
                raise OptionError("make codec: neither a type nor a size is given")
            self.size = size
            self.what = f"{size} bytes"
            self._encode: Encode = self._encode_raw
            self._decode: Decode = bytes
        else:
            self.size = layout.size
            self.what = c_name(layout)
            self._encode = encoder(layout)
            self._decode = _decoder(layout)
            if lossless and not isinstance(layout, StructLayout):
                self._decode = self._lossless(self._decode)
        if size is not None and size != self.size:
            raise OptionError(f"make codec: {self.what} has {self.size} bytes, the map {size}")

    def encode(self, value: Any) -> bytes:
        """Return the bytes of a value."""
        return self._encode(value)

    def decode(self, data: bytes | memoryview) -> Any:
        """Return the value of as many bytes as the type has."""
        if type(data) is not bytes:
            data = bytes(data)
        if len(data) != self.size:
            raise OptionError(f"decode {self.what}: {len(data)} bytes given, it has {self.size}")
        return self._decode(data)

    def _encode_raw(self, value: Any) -> bytes:
        data = raw_bytes(value, self.size, "it")
        if data is None:
            raise OptionError(
                f"{value!r} is no bytes; the object does not say of which type these "
                f"{self.size} bytes are (declare it with __type(key, ...), __type(value, ...); "
                "to open_pinned() give a layout)"
            )
        return data

    def _lossless(self, decode: Decode) -> Decode:
        def decoded(data: bytes) -> Any:
            value = decode(data)
            try:
                same = self._encode(value) == data
            except OptionError:
                same = False
            return value if same else data

        return decoded


def _decoder(layout: TypeLayout) -> Decode:
    # Not at the top: this chooses between the engines, and loads one.
    from kerneltrace_core.events.classes import event_class

    if isinstance(layout, StructLayout):
        return event_class(layout).from_bytes
    if isinstance(layout, Scalar) and layout.kind in ("int", "pointer", "char"):
        return _integer(layout)
    if isinstance(layout, ArrayLayout) and not layout.size:
        return bytes
    holder = StructLayout("value", layout.size, (FieldLayout("value", 0, layout),))
    held = event_class(holder)

    def decode(data: bytes) -> Any:
        event: KernelEvent = held.from_bytes(data)
        return event.value  # type: ignore[attr-defined]

    return decode


def _integer(layout: Scalar) -> Decode:
    order = "big" if layout.big_endian else sys.byteorder
    signed = layout.signed

    def decode(data: bytes) -> int:
        return int.from_bytes(data, order, signed=signed)

    return decode
