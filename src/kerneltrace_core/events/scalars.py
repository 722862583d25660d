"""What a declared field can be: numbers of a size and sign, text, addresses, devices, arrays.

Each is ``Annotated[what Python sees, a Shape]``, so that a type checker knows ``event.fd`` as int.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Protocol, TypeAlias

from kerneltrace_core.btf.layout import ArrayLayout, Scalar, TypeLayout
from kerneltrace_core.events.decoding import Decoding, decode_scalar, raw, size_of
from kerneltrace_core.events.devices import Device
from kerneltrace_core.events.engine import REST

__all__ = [
    "Address",
    "Bytes",
    "Chars",
    "Float",
    "IPv4",
    "IPv6",
    "Integer",
    "KernelDevice",
    "Shape",
    "be16",
    "be32",
    "be64",
    "chars",
    "device",
    "f32",
    "f64",
    "s8",
    "s16",
    "s32",
    "s64",
    "u8",
    "u16",
    "u32",
    "u64",
]


class Shape(Protocol):
    """What an annotation asks of the C type."""

    def fit(self, layout: TypeLayout, bits: int) -> Decoding | None:
        """Return how to decode the C type, None if it is another one. ``bits``: of a bit field."""

    def describe(self) -> str:
        """Return the size and sign as the table of differences shows it."""


@dataclass(frozen=True)
class Integer:
    """A number of this size and sign; in network byte order whatever C calls it."""

    size: int
    signed: bool = False
    big_endian: bool = False

    def fit(self, layout: TypeLayout, bits: int) -> Decoding | None:
        """Fit a number that is the same in C; a bit field by the type that it is declared with."""
        if not isinstance(layout, Scalar) or layout.kind == "float":
            return None
        if (layout.size, layout.signed) != (self.size, self.signed):
            return None
        if self.big_endian:
            return Decoding("S" if self.signed else "U", self.size) if not bits else None
        return None if layout.big_endian else Decoding("s" if self.signed else "u", self.size)

    def describe(self) -> str:
        """Return ``4 bytes, unsigned``."""
        order = ", big-endian" if self.big_endian else ""
        return f"{_bytes(self.size)}, {'signed' if self.signed else 'unsigned'}{order}"


@dataclass(frozen=True)
class Float:
    """A floating-point number."""

    size: int

    def fit(self, layout: TypeLayout, bits: int) -> Decoding | None:  # noqa: ARG002
        """Fit a float of this size."""
        if not isinstance(layout, Scalar) or layout.kind != "float" or layout.size != self.size:
            return None
        return decode_scalar(layout)

    def describe(self) -> str:
        """Return ``8 bytes, float``."""
        return f"{_bytes(self.size)}, float"


@dataclass(frozen=True)
class Chars:
    """Text up to the first NUL, in an array of ``length`` bytes; without it, of any."""

    length: int | None = None

    def fit(self, layout: TypeLayout, bits: int) -> Decoding | None:  # noqa: ARG002
        """Fit an array of char, or of other numbers of one byte."""
        if not isinstance(layout, ArrayLayout) or not isinstance(layout.element, Scalar):
            return None
        if layout.element.size != 1 or self.length not in (None, layout.count):
            return None
        return Decoding("c", layout.count or REST)

    def describe(self) -> str:
        """Return ``16 bytes, text``."""
        return "text" if self.length is None else f"{_bytes(self.length)}, text"


@dataclass(frozen=True)
class Bytes:
    """The bytes themselves, ``length`` of them; 0: a flexible array's."""

    length: int

    def fit(self, layout: TypeLayout, bits: int) -> Decoding | None:
        """Fit anything of the size."""
        return None if bits or size_of(layout) != self.length else raw(layout)

    def describe(self) -> str:
        """Return ``16 bytes``."""
        return _bytes(self.length) if self.length else "the rest, bytes"


@dataclass(frozen=True)
class Address:
    """An internet address in network byte order, whatever C calls its 4 or 16 bytes."""

    size: int
    make: Callable[[bytes], Any]

    def fit(self, layout: TypeLayout, bits: int) -> Decoding | None:
        """Fit anything of the size: ``__be32``, ``__u8[16]``, ``struct in6_addr``."""
        if bits or size_of(layout) != self.size:
            return None
        return Decoding("b", self.size, convert=self.make)

    def describe(self) -> str:
        """Return ``4 bytes, an address``."""
        return f"{_bytes(self.size)}, an address"


@dataclass(frozen=True)
class KernelDevice:
    """A device number as the kernel keeps it: ``dev_t``, 12 bits major and 20 bits minor."""

    def fit(self, layout: TypeLayout, bits: int) -> Decoding | None:
        """Fit an unsigned number of 4 bytes, or of 8 that holds one."""
        if bits or not isinstance(layout, Scalar) or layout.signed or layout.size not in (4, 8):
            return None
        return Decoding("u", layout.size, convert=Device.from_kernel)

    def describe(self) -> str:
        """Return what it must be."""
        return "4 or 8 bytes, unsigned, a device"


def _bytes(count: int) -> str:
    return f"{count} byte{'' if count == 1 else 's'}"


u8: TypeAlias = Annotated[int, Integer(1)]
u16: TypeAlias = Annotated[int, Integer(2)]
u32: TypeAlias = Annotated[int, Integer(4)]
u64: TypeAlias = Annotated[int, Integer(8)]
s8: TypeAlias = Annotated[int, Integer(1, signed=True)]
s16: TypeAlias = Annotated[int, Integer(2, signed=True)]
s32: TypeAlias = Annotated[int, Integer(4, signed=True)]
s64: TypeAlias = Annotated[int, Integer(8, signed=True)]
be16: TypeAlias = Annotated[int, Integer(2, big_endian=True)]
be32: TypeAlias = Annotated[int, Integer(4, big_endian=True)]
be64: TypeAlias = Annotated[int, Integer(8, big_endian=True)]
f32: TypeAlias = Annotated[float, Float(4)]
f64: TypeAlias = Annotated[float, Float(8)]
chars: TypeAlias = Annotated[str, Chars()]
IPv4: TypeAlias = Annotated[IPv4Address, Address(4, IPv4Address)]
IPv6: TypeAlias = Annotated[IPv6Address, Address(16, IPv6Address)]
device: TypeAlias = Annotated[Device, KernelDevice()]
