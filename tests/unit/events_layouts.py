"""Layouts of a few C structs, as an object's BTF would give them."""

from __future__ import annotations

from typing import Any

from kerneltrace_core.btf.layout import (
    ArrayLayout,
    EventTag,
    FieldLayout,
    ObjectLayout,
    Scalar,
    StructLayout,
    TypeLayout,
)

CHAR = Scalar(1, True, "char", name="char")
U8 = Scalar(1, False, "int", name="__u8")
U16 = Scalar(2, False, "int", name="__u16")
U32 = Scalar(4, False, "int", name="__u32")
U64 = Scalar(8, False, "int", name="__u64")
S32 = Scalar(4, True, "int", name="int")
S64 = Scalar(8, True, "int", name="__s64")
BE16 = Scalar(2, False, "int", big_endian=True, name="__be16")
BE32 = Scalar(4, False, "int", big_endian=True, name="__be32")
BOOL = Scalar(1, False, "bool", name="bool")
DOUBLE = Scalar(8, True, "float", name="double")
POINTER = Scalar(8, False, "pointer", name="")
STATE = Scalar(4, False, "enum", name="conn_state", values=(("OPEN", 1), ("CLOSED", 2)))


def array(element: TypeLayout, *counts: int) -> ArrayLayout:
    """Return ``element[counts[0]][counts[1]]...``."""
    for count in reversed(counts):
        element = ArrayLayout(element, count)
    assert isinstance(element, ArrayLayout)
    return element


def struct(name: str, size: int, *members: tuple[Any, ...], union: bool = False) -> StructLayout:
    """Return a struct of members (name, offset, type[, bit_offset, bit_size])."""
    return StructLayout(name, size, tuple(FieldLayout(*member) for member in members), union)


def objects(*structs: StructLayout, **tags: int) -> ObjectLayout:
    """Return an object that has these structs, some of them with tags."""
    events = {name: EventTag(name, tag) for name, tag in tags.items()}
    return ObjectLayout({each.name: each for each in structs}, {}, {}, {}, events, {})


HEADER = struct(
    "kt_header",
    24,
    ("type", 0, U16),
    ("size", 2, U16),
    ("cpu", 4, U32),
    ("time_ns", 8, U64),
    ("request", 16, U64),
)
POINT = struct("point", 8, ("x", 0, S32), ("y", 4, S32))
EVERYTHING = struct(
    "everything",
    144,
    ("header", 0, HEADER),
    ("fd", 24, S32),
    ("from", 28, BE32),
    ("comm", 32, array(CHAR, 16)),
    ("state", 48, STATE),
    ("low", 52, U32, 0, 3),
    ("high", 52, S32, 3, 29),
    ("address", 56, array(U8, 16)),
    ("corners", 72, array(POINT, 2)),
    ("", 88, struct("", 8, ("whole", 0, U64), ("halves", 0, array(U32, 2)), union=True)),
    ("ratio", 96, DOUBLE),
    ("where", 104, POINTER),
    ("flag", 112, BOOL),
    ("letter", 113, CHAR),
    ("port", 114, BE16),
    ("matrix", 116, array(U16, 2, 3)),
    ("wide", 128, Scalar(16, True, "int", name="__int128")),
)
