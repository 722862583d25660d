"""Which records of a ring are of one type, where the object was not written for us."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from kerneltrace_core.btf.layout import FieldLayout, Scalar, StructLayout, TypeLayout, c_name
from kerneltrace_core.errors import OptionError
from kerneltrace_core.events.naming import field_names
from kerneltrace_core.events.pyframes import HEADER, padded, records

__all__ = ["Keep", "Where", "keep_by_function", "tag_of_field"]

# A field ("kind" or "header.kind") and its value or values; or a function of the record's bytes.
Where = tuple[str, Any] | Callable[[bytes], bool]
# Frames to those of this type, and how many records were of others.
Keep = Callable[[bytes], tuple[bytes, int]]


def tag_of_field(layout: StructLayout, where: tuple[str, Any]) -> tuple[int, int, tuple[int, ...]]:
    """Return a Selector's ``tag_offset``, ``tag_size`` and ``tags``.

    Raises OptionError for a field that is not there, no whole number, or cannot have the value.
    """
    path, wanted = where
    offset, member = _find(layout, path)
    number = member.type
    if not isinstance(number, Scalar) or number.kind == "float" or number.size not in (1, 2, 4, 8):
        raise OptionError(
            f"tell records apart by {path}: it is no whole number of {layout.name} "
            "(give a function)"
        )
    if member.bit_size:
        raise OptionError(f"tell records apart by {path}: it is a bit field (give a function)")
    several = isinstance(wanted, Iterable) and not isinstance(wanted, str | bytes)
    values = tuple(wanted) if several else (wanted,)
    if not values:
        raise OptionError(f"tell records apart by {path}: no value is given, so none would match")
    tags = dict.fromkeys(_unsigned(path, number, value) for value in values)
    return offset, number.size, tuple(tags)


def keep_by_function(function: Callable[[bytes], bool]) -> Keep:
    """Return what keeps the records for which a function of their bytes is true.

    Slower than a field by a factor of fifty: each record becomes an object. What the function
    raises passes.
    """

    def keep(frames: bytes) -> tuple[bytes, int]:
        kept: list[bytes] = []
        others = 0
        for at, length, _ in records(frames):
            if function(frames[at : at + length]):
                kept.append(frames[at - HEADER.size : at + padded(length)])
            else:
                others += 1
        return (b"".join(kept), others) if others else (frames, 0)

    return keep


def _find(layout: StructLayout, path: str) -> tuple[int, FieldLayout]:
    inner: TypeLayout = layout
    offset, member = 0, None
    for name in path.split("."):
        members = inner.fields() if isinstance(inner, StructLayout) else ()
        by_name = dict(zip(field_names(each.name for each in members), members, strict=True))
        by_name.update((each.name, each) for each in members)
        member = by_name.get(name)
        if member is None:
            near = difflib.get_close_matches(name, by_name, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(by_name) or 'none'}"
            raise OptionError(
                f"tell records apart by {path}: {c_name(inner)} has no field {name} ({hint})"
            )
        offset += member.offset
        inner = member.type
    assert member is not None  # split() returns one part at least
    return offset, member


def _unsigned(path: str, number: Scalar, value: object) -> int:
    names = dict(number.values)
    if isinstance(value, str) and value in names:
        value = names[value]
    elif isinstance(value, str | bytes) and len(value) == number.size == 1:
        value = ord(value)
    if not isinstance(value, int):
        of = f", nor one of {', '.join(names)}" if names else ""
        raise OptionError(f"tell records apart by {path}: {value!r} is no whole number{of}")
    try:
        there = int(value).to_bytes(
            number.size, "big" if number.big_endian else sys.byteorder, signed=number.signed
        )
    except OverflowError:
        raise OptionError(
            f"tell records apart by {path}: {value} does not fit in {number.size} bytes, "
            f"{'signed' if number.signed else 'unsigned'}"
        ) from None
    return int.from_bytes(there, sys.byteorder)
