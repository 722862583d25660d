"""Event classes made from layouts alone."""

from __future__ import annotations

import ctypes
import os
import pickle
import struct as packing
import subprocess
import sys
import threading
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneltrace_core import u8
from kerneltrace_core.btf.layout import ArrayLayout, FieldLayout, Scalar, StructLayout
from kerneltrace_core.codegen.events_source import fields_of
from kerneltrace_core.errors import OptionError
from kerneltrace_core.events.classes import event_class
from kerneltrace_core.events.columns import Columns, dtype_of
from kerneltrace_core.events.declare import declared_of, kernel_event
from kerneltrace_core.events.discriminate import tag_of_field
from kerneltrace_core.events.engine import KernelEvent
from kerneltrace_core.events.naming import class_name, field_name
from kerneltrace_core.maps.encoding import encoder
from unit.events_layouts import (
    CHAR,
    EVERYTHING,
    POINT,
    S32,
    STATE,
    U8,
    U16,
    U32,
    U64,
    array,
    struct,
)

RECORD = b"".join(
    (
        packing.pack("=HHIQQ", 7, 144, 3, 123456789, 0),
        packing.pack("=i", -2),
        bytes((10, 0, 0, 1)),
        b"python3\0rubbish\0",
        packing.pack("=I", 2),
        packing.pack("=I", 5 | (0x1FFFFFFF - 9) << 3),
        bytes(range(16)),
        packing.pack("=4i", 1, -1, 2, -2),
        packing.pack("=II", 0xAAAA, 0xBBBB),
        packing.pack("=d", 0.25),
        packing.pack("=Q", 0xFFFF888000000000),
        b"\x01A",
        packing.pack(">H", 443),
        packing.pack("=6H", 1, 2, 3, 4, 5, 6),
        (-3).to_bytes(16, sys.byteorder, signed=True),
    )
)

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="bit fields of this layout")


@little_endian
def test_every_kind_of_field_is_read_as_it_is_in_c() -> None:
    cls = event_class(EVERYTHING)

    event: Any = cls.from_bytes(RECORD, 1)

    assert cls.__name__ == "Everything"
    assert issubclass(cls, KernelEvent)
    assert event.as_dict() == {
        "header": {"type": 7, "size": 144, "cpu": 3, "time_ns": 123456789, "request": 0},
        "fd": -2,
        "from_": 0x0A000001,
        "comm": "python3",
        "state": 2,
        "low": 5,
        "high": -10,
        "address": bytes(range(16)),
        "corners": ({"x": 1, "y": -1}, {"x": 2, "y": -2}),
        "whole": 0xBBBB0000AAAA,
        "halves": (0xAAAA, 0xBBBB),
        "ratio": 0.25,
        "where": 0xFFFF888000000000,
        "flag": True,
        "letter": 65,
        "port": 443,
        "matrix": ((1, 2, 3), (4, 5, 6)),
        "wide": -3,
    }
    assert event.header.cpu == 3
    assert type(event.flag) is bool
    assert isinstance(event.corners[0], event_class(POINT))


def test_an_enum_is_an_int_enum_and_unknown_values_stay_int() -> None:
    cls = event_class(struct("s", 4, ("state", 0, STATE)))
    known: Any = cls.from_bytes(packing.pack("=I", 2))
    unknown: Any = cls.from_bytes(packing.pack("=I", 3))

    assert isinstance(known.state, IntEnum)
    assert repr(known.state) == "<ConnState.CLOSED: 2>"
    assert type(unknown.state) is int
    assert unknown.state == 3
    again = pickle.loads(pickle.dumps(known.state))
    assert again is known.state


@pytest.mark.parametrize("name", ["mro", "_sunder_", "__dunder__"])
def test_an_enum_that_python_cannot_have_is_int(name: str) -> None:
    awkward = Scalar(4, False, "enum", name="awkward", values=((name, 1),))
    event: Any = event_class(struct("s", 4, ("e", 0, awkward))).from_bytes(packing.pack("=I", 1))

    assert event.e == 1


def test_a_flexible_array_is_the_rest_of_the_record() -> None:
    text = event_class(struct("a", 4, ("length", 0, U32), ("text", 4, array(CHAR, 0))))
    raw = event_class(struct("b", 4, ("length", 0, U32), ("data", 4, array(U8, 0))))
    stack = event_class(struct("c", 8, ("pid", 0, U32), ("frames", 8, array(U64, 0))))
    pairs = event_class(struct("d", 4, ("n", 0, U32), ("points", 4, array(POINT, 0))))
    head = packing.pack("=I", 9)

    def read(cls: Any, data: bytes) -> Any:
        return cls.from_bytes(data)

    assert read(text, head + b"abc\0def").text == "abc"
    assert read(raw, head + b"abc\0def").data == b"abc\0def"
    assert read(stack, head + bytes(4) + packing.pack("=3Q", 5, 6, 7)).frames == (5, 6, 7)
    assert [p.as_dict() for p in read(pairs, head + packing.pack("=4i", 1, 2, 3, 4)).points] == [
        {"x": 1, "y": 2},
        {"x": 3, "y": 4},
    ]
    assert read(stack, head + bytes(4)).frames == ()


def test_a_struct_at_the_end_has_the_rest_of_the_record_for_its_flexible_array() -> None:
    stack = struct("stack", 4, ("depth", 0, U32), ("frames", 4, array(U32, 0)))
    outer = event_class(struct("outer", 12, ("number", 0, U64), ("stack", 8, stack)))
    deeper = event_class(
        struct("deeper", 12, ("number", 0, U64), ("in", 8, struct("in", 4, ("stack", 0, stack))))
    )
    record = packing.pack("=QIII", 1, 2, 3, 4)

    for stacked in (outer.from_bytes(record).stack, deeper.from_bytes(record).in_.stack):
        assert (stacked.depth, stacked.frames) == (2, (3, 4))
    alone: Any = outer.from_bytes(record[:12])
    assert (alone.stack.frames, alone.as_dict()) == (
        (),
        {"number": 1, "stack": {"depth": 2, "frames": ()}},
    )


def test_flexible_arrays_that_share_their_place_are_all_the_rest() -> None:
    both = struct("", 0, ("octets", 0, array(U8, 0)), ("words", 0, array(U16, 0)), union=True)
    event: Any = event_class(struct("s", 4, ("n", 0, U32), ("", 4, both))).from_bytes(b"....abcd")

    assert event.octets == b"abcd"
    assert event.words == packing.unpack("=HH", b"abcd")


def test_what_shares_its_place_with_a_flexible_array_is_in_each_record() -> None:
    both = struct("", 8, ("number", 0, U64), ("octets", 0, array(U8, 0)), union=True)
    cls = event_class(struct("s", 16, ("n", 0, U32), ("", 8, both)))

    event: Any = cls.from_bytes(packing.pack("=IIQ", 1, 0, 2))
    assert (event.n, event.number, event.octets) == (1, 2, packing.pack("=Q", 2))
    with pytest.raises(OptionError, match="12 bytes, not 16 or more"):
        cls.from_bytes(bytes(12))


def test_an_array_of_none_within_a_struct_is_a_label() -> None:
    cls = event_class(struct("s", 8, ("a", 0, U32), ("label", 4, array(U8, 0)), ("b", 4, U32)))
    event: Any = cls.from_bytes(packing.pack("=II", 1, 2))

    assert (event.a, event.label, event.b) == (1, b"", 2)


def test_odd_types_are_their_bytes() -> None:
    empty = StructLayout("empty", 0, ())
    deep = array(U16, *[1] * 9)
    layout = struct(
        "odd",
        24,
        ("half", 0, Scalar(2, True, "float", name="_Float16")),
        ("none", 2, empty),
        ("nones", 2, array(empty, 3)),
        ("deep", 2, deep),
        ("three", 4, Scalar(3, False, "int", name="u24")),
        ("long", 8, Scalar(16, True, "float", name="long double")),
    )
    event: Any = event_class(layout).from_bytes(bytes(range(24)))

    assert event.half == b"\0\x01"
    assert bytes(event.none) == b""
    assert event.nones == b""
    assert event.deep == b"\x02\x03"
    assert event.three == int.from_bytes(b"\x04\x05\x06", sys.byteorder)
    assert event.long == bytes(range(8, 24))


def test_names_that_python_reserves_get_an_underscore() -> None:
    assert [field_name(name) for name in ("from", "class", "fd", "origin", "as_dict")] == [
        "from_",
        "class_",
        "fd",
        "origin_",
        "as_dict_",
    ]
    assert field_name("__init__") == "__init___"
    assert field_name("__pad") == "__pad"
    assert [class_name(name) for name in ("open_event", "_x", "", "sockAddr", "in6_addr")] == [
        "OpenEvent",
        "X",
        "Unnamed",
        "SockAddr",
        "In6Addr",
    ]
    assert class_name("none") == "_None"
    hostile = struct("s", 8, ("_size_", 0, U32), ("__class__", 4, U32))
    event: Any = event_class(hostile).from_bytes(packing.pack("=II", 1, 2))
    assert (event._size__, event.__class___) == (1, 2)


def test_equal_layouts_have_one_class_whoever_asks_first() -> None:
    def fresh() -> StructLayout:
        return struct("of_threads", 8, ("point", 0, struct("point", 8, ("x", 0, S32))))

    found: list[Any] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        found.append(event_class(fresh()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert len(set(found)) == 1
    assert event_class(struct("of_threads", 8, ("x", 0, U64))) is not found[0]


def test_events_of_made_classes_pickle() -> None:
    event = event_class(EVERYTHING).from_bytes(RECORD, 2)

    again = pickle.loads(pickle.dumps(event))

    assert again == event
    assert again.origin == 2
    assert type(again) is type(event)


def test_events_match_patterns() -> None:
    event = event_class(POINT).from_bytes(packing.pack("=ii", 3, 4))
    Point = event_class(POINT)

    match event:
        case Point(x, y=4):
            assert x == 3
        case _:
            pytest.fail("no match")


C_TYPES: dict[Any, Any] = {
    ctypes.c_uint8: Scalar(1, False, "int", name="unsigned char"),
    ctypes.c_int8: Scalar(1, True, "int", name="signed char"),
    ctypes.c_uint16: Scalar(2, False, "int"),
    ctypes.c_int16: Scalar(2, True, "int"),
    ctypes.c_uint32: Scalar(4, False, "int"),
    ctypes.c_int32: Scalar(4, True, "int"),
    ctypes.c_uint64: Scalar(8, False, "int"),
    ctypes.c_int64: Scalar(8, True, "int"),
    ctypes.c_double: Scalar(8, True, "float"),
    ctypes.c_float: Scalar(4, True, "float"),
    ctypes.c_bool: Scalar(1, False, "bool"),
}


@st.composite
def c_structs(draw: Any, depth: int = 2) -> tuple[type[ctypes.Structure], StructLayout]:
    """Return a struct as ctypes lays it out, and its layout."""
    types = []
    for _ in range(draw(st.integers(1, 6))):
        if depth and draw(st.integers(0, 4)) == 0:
            inner, inner_layout = draw(c_structs(depth - 1))
        else:
            inner = draw(st.sampled_from(list(C_TYPES)))
            inner_layout = C_TYPES[inner]
        for count in draw(st.lists(st.integers(1, 3), max_size=2)):
            inner, inner_layout = inner * count, ArrayLayout(inner_layout, count)
        types.append((inner, inner_layout))
    namespace: dict[str, Any] = {"_fields_": [(f"f{i}", each[0]) for i, each in enumerate(types)]}
    if draw(st.booleans()):
        namespace["_pack_"] = 1
        namespace["_layout_"] = "ms"
    made = type("made", (ctypes.Structure,), namespace)
    members = [(f"f{i}", getattr(made, f"f{i}").offset, each[1]) for i, each in enumerate(types)]
    return made, struct("made", ctypes.sizeof(made), *members)


def plain(value: Any, layout: Any) -> Any:
    """Return what ctypes read as we show it."""
    if isinstance(layout, StructLayout):
        return {
            member.name: plain(getattr(value, member.name), member.type)
            for member in layout.fields()
        }
    if isinstance(layout, ArrayLayout):
        if layout.element == C_TYPES[ctypes.c_uint8]:
            return bytes(value)
        return tuple(plain(each, layout.element) for each in value)
    return value


@given(c_structs(), st.randoms(use_true_random=False))
def test_a_struct_reads_as_ctypes_reads_it(made: Any, random: Any) -> None:
    c_struct, layout = made
    # Small bytes: neither NaN, which differs from itself, nor a bool that is neither 0 nor 1.
    data = bytes(random.choice((0, 1)) for _ in range(layout.size))

    event = event_class(layout).from_bytes(data)

    assert event.as_dict() == plain(c_struct.from_buffer_copy(data), layout)


def test_types_that_double_at_every_level_take_no_time() -> None:
    layout = struct("level", 4, ("a", 0, U32))
    for _ in range(60):
        members = (FieldLayout("a", 0, layout), FieldLayout("b", 0, layout))
        layout = StructLayout("level", 4, members, is_union=True)

    event = event_class(layout).from_bytes(bytes([7, 0, 0, 0]))

    assert bytes(event.a.b.b.a) == bytes([7, 0, 0, 0])


def test_the_twin_takes_over_where_it_is_asked_for() -> None:
    program = (
        "from unit.test_events_classes import *; from kerneltrace_core.events import engine; "
        "event = event_class(EVERYTHING).from_bytes(RECORD, 1); "
        "print(engine.IMPLEMENTATION, event.comm, event.corners[1].y); "
        "print(pickle.loads(pickle.dumps(event)) == event)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KERNELTRACE_PURE_PYTHON": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert found.stdout.split() == ["python", "python3", "-2", "True"]


def test_a_field_named_like_an_escaped_keyword_hides_nothing() -> None:
    layout = struct(
        "clash",
        4,
        ("class", 0, U8),
        ("class_", 1, U8),
        ("class__", 2, U8),
        ("from", 3, U8),
    )
    event = event_class(layout).from_bytes(bytes((1, 2, 3, 4)))

    assert event.as_dict() == {"class___": 1, "class_": 2, "class__": 3, "from_": 4}
    assert dtype_of(layout)["names"] == ["class___", "class_", "class__", "from_"]
    assert list(Columns(layout, bytearray((1, 2, 3, 4)))["class___"]) == [1]
    assert tag_of_field(layout, ("class", 7))[0] == 0
    assert tag_of_field(layout, ("class_", 7))[0] == 1
    encode = encoder(layout)
    assert encode({"class": 1, "class_": 2, "class__": 3, "from": 4}) == bytes((1, 2, 3, 4))
    assert encode(event.as_dict()) == bytes((1, 2, 3, 4))
    assert list(fields_of(layout)) == ["class___", "class_", "class__", "from_"]


def test_a_declared_class_has_both_of_such_fields() -> None:
    layout = struct("clash", 2, ("class", 0, U8), ("class_", 1, U8))

    @kernel_event("clash")
    class Clash:
        class__: u8
        class_: u8

    event: Any = declared_of(Clash).bind(layout).from_bytes(b"\1\2")  # type: ignore[union-attr]

    assert (event.class__, event.class_) == (1, 2)
