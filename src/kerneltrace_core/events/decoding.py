"""How the bytes of one type become a value, and the field that does it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kerneltrace_core.btf.layout import ArrayLayout, FieldLayout, Scalar, TypeLayout
from kerneltrace_core.events.engine import REST, Field
from kerneltrace_core.events.enums import enum_class, enum_members

__all__ = ["Decoding", "decode_array", "decode_scalar", "field_of", "raw", "size_of"]

MOST_DIMENSIONS = 8
WHOLE = (1, 2, 4, 8)


class Decoding(NamedTuple):
    """The part of a Field that is not its place; see there."""

    kind: str
    size: int
    shape: tuple[int, ...] = ()
    convert: Callable[[Any], Any] | Mapping[Any, Any] | None = None


def size_of(layout: TypeLayout) -> int:
    """Return the bytes of a type; 0 of a flexible array."""
    return layout.size


def raw(layout: TypeLayout) -> Decoding:
    """Decode as the bytes themselves."""
    flexible = isinstance(layout, ArrayLayout) and not layout.count
    return Decoding("b", REST if flexible else size_of(layout))


def decode_scalar(layout: Scalar) -> Decoding:
    """Decode a number as its C type says; of an enum as its IntEnum."""
    if layout.kind == "float":
        return Decoding("f", layout.size) if layout.size in (4, 8) else raw(layout)
    if layout.size not in WHOLE:
        order = "big" if layout.big_endian else sys.byteorder
        wide = functools.partial(int.from_bytes, byteorder=order, signed=layout.signed)
        return Decoding("b", layout.size, convert=wide)
    if layout.kind == "bool":
        return Decoding("?", layout.size)
    kind = "s" if layout.signed else "u"
    convert = enum_members(enum_class(layout)) if layout.kind == "enum" else None
    return Decoding(kind.upper() if layout.big_endian else kind, layout.size, convert=convert)


def decode_array(layout: ArrayLayout, decode: Callable[[TypeLayout], Decoding]) -> Decoding:
    """Decode as a tuple, each element by ``decode``: tuples of tuples for several dimensions."""
    element = decode(layout.element)
    shape = (layout.count or REST, *element.shape)
    if element.size <= 0 or REST in element.shape or len(shape) > MOST_DIMENSIONS:
        return raw(layout)
    return element._replace(shape=shape)


def field_of(member: FieldLayout, decoding: Decoding) -> Field:
    """Return the descriptor of a member of a struct."""
    kind, size, shape, convert = decoding
    if member.bit_size:
        size = (member.bit_offset + member.bit_size + 7) // 8
    return Field(
        member.offset, size, kind, member.bit_offset, member.bit_size, shape=shape, convert=convert
    )
