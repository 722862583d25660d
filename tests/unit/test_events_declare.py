"""Declared events, checked against the object field by field, and bound to it."""

from __future__ import annotations

import pickle
import struct as packing
import subprocess
import sys
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from kerneltrace_core.errors import EventLayoutError, KernelTraceError, OptionError
from kerneltrace_core.events.annotations import Array, Offset
from kerneltrace_core.events.binding import bind, perf_is_sized, perf_padding
from kerneltrace_core.events.declare import kernel_event
from kerneltrace_core.events.devices import Device, error_name
from kerneltrace_core.events.engine import KernelEvent, Reader, Selector
from kerneltrace_core.events.scalars import (
    Bytes,
    Chars,
    IPv4,
    IPv6,
    be16,
    be32,
    chars,
    device,
    f32,
    f64,
    s8,
    s16,
    s32,
    s64,
    u8,
    u16,
    u32,
    u64,
)
from unit.events_engines import frames_of
from unit.events_layouts import (
    BE32,
    BOOL,
    CHAR,
    DOUBLE,
    EVERYTHING,
    HEADER,
    POINT,
    S32,
    S64,
    STATE,
    U8,
    U16,
    U32,
    U64,
    array,
    objects,
    struct,
)
from unit.test_events_classes import RECORD, little_endian

CHAR16 = array(CHAR, 16)


def bound(cls: Any, layout: Any) -> Any:
    """Return the class as it is bound to an object that has this struct."""
    return bind(cls, objects(layout)).cls


def read(annotation: Any, layout: Any, data: bytes, *bits: int) -> Any:
    """Return a field that is declared so, of this C type, over these bytes."""
    cls = type("One", (KernelEvent,), {"__annotations__": {"x": annotation}, "__slots__": ()})
    made = kernel_event("one")(cls)
    return bound(made, struct("one", len(data), ("x", 0, layout, *bits))).from_bytes(data).x


@little_endian
def test_a_declared_class_reads_the_fields_that_it_declares() -> None:
    from unit.typed_events import Everything, Point, State

    made = bound(Everything, EVERYTHING)
    event = made.from_bytes(RECORD)

    assert isinstance(event, Everything)
    assert (event.fd, event.from_, event.comm) == (-2, IPv4Address("10.0.0.1"), "python3")
    assert event.state is State.CLOSED
    assert (event.low, event.high) == (5, -10)
    assert event.address == IPv6Address(bytes(range(16)))
    assert isinstance(event.corners[1], Point)
    assert event.corners[1].length() == pytest.approx(2 * 2**0.5)
    assert event.matrix == ((1, 2, 3), (4, 5, 6))
    assert (event.port, event.wide, event.flag, event.header.cpu) == (443, -3, True, 3)
    assert (event.twice, made.__doc__, made.__name__) == (-4, "All there is.", "Everything")
    assert pickle.loads(pickle.dumps(event)) == event


@pytest.mark.parametrize(
    ("annotation", "layout", "data", "value"),
    [
        (u8, U8, b"\xff", 255),
        (u16, U16, packing.pack("=H", 65535), 65535),
        (u32, U32, packing.pack("=I", 2**32 - 1), 2**32 - 1),
        (u64, U64, packing.pack("=Q", 2**64 - 1), 2**64 - 1),
        (s8, CHAR, b"\xff", -1),
        (s32, S32, packing.pack("=i", -5), -5),
        (s64, S64, packing.pack("=q", -5), -5),
        (be32, BE32, packing.pack(">I", 0x01020304), 0x01020304),
        (be32, U32, packing.pack(">I", 0x01020304), 0x01020304),
        (f64, DOUBLE, packing.pack("=d", 1.5), 1.5),
        (float, DOUBLE, packing.pack("=d", 1.5), 1.5),
        (int, U16, packing.pack("=H", 65535), 65535),
        (int, S32, packing.pack("=i", -5), -5),
        (int, BE32, packing.pack(">I", 7), 7),
        (int, STATE, packing.pack("=I", 2), 2),
        (int, BOOL, b"\x01", 1),
        (bool, U32, packing.pack("=I", 256), True),
        (bool, BOOL, b"\0", False),
        (chars, CHAR16, b"ab\0cdefghijklmno", "ab"),
        (str, CHAR16, b"ab\0cdefghijklmno", "ab"),
        (str, array(U8, 4), b"ab\0c", "ab"),
        (Annotated[str, Chars(16)], CHAR16, b"0123456789abcdef", "0123456789abcdef"),
        (bytes, CHAR16, b"ab\0cdefghijklmno", b"ab\0cdefghijklmno"),
        (bytes, POINT, bytes(range(8)), bytes(range(8))),
        (Annotated[bytes, Bytes(8)], POINT, bytes(range(8)), bytes(range(8))),
        (
            Annotated[tuple[bytes, ...], Array(Bytes(2), 2)],
            array(U8, 2, 2),
            b"abcd",
            (b"ab", b"cd"),
        ),
        (bytes, U32, b"abcd", b"abcd"),
        (Any, array(U16, 2), packing.pack("=HH", 1, 2), (1, 2)),
        (object, CHAR16, bytes(16), ""),
        (IPv4, U32, bytes((127, 0, 0, 1)), IPv4Address("127.0.0.1")),
        (IPv4, BE32, bytes((127, 0, 0, 1)), IPv4Address("127.0.0.1")),
        (IPv4Address, array(U8, 4), bytes((1, 2, 3, 4)), IPv4Address("1.2.3.4")),
        (IPv6, array(U8, 16), bytes(15) + b"\x01", IPv6Address("::1")),
        (IPv6Address, array(BE32, 4), bytes(15) + b"\x01", IPv6Address("::1")),
        (
            IPv6,
            struct("in6_addr", 16, ("in6_u", 0, array(U8, 16))),
            b"\xfe\x80" + bytes(13) + b"\x02",
            IPv6Address("fe80::2"),
        ),
        (device, U32, packing.pack("=I", 8 << 20 | 1), Device(8, 1)),
        (Device, U32, packing.pack("=I", 259 << 20 | 1048575), Device(259, 1048575)),
        (tuple[int, ...], array(U16, 3), packing.pack("=3H", 1, 2, 3), (1, 2, 3)),
        (
            Annotated[tuple[int, ...], Array(u16, 3)],
            array(U16, 3),
            packing.pack("=3H", 1, 2, 3),
            (1, 2, 3),
        ),
        (tuple[tuple[int, ...], ...], array(U8, 2, 2), b"\1\2\3\4", ((1, 2), (3, 4))),
        (tuple[str, ...], array(CHAR, 2, 4), b"ab\0\0cd\0\0", ("ab", "cd")),
        (Annotated[int, "a note", "of the user's"], U8, b"\x05", 5),
        (Annotated[u32, Offset(0)], U32, packing.pack("=I", 6), 6),
    ],
)
def test_an_annotation_reads_the_c_types_that_fit(
    annotation: Any, layout: Any, data: bytes, value: Any
) -> None:
    found = read(annotation, layout, data)

    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("annotation", "layout"),
    [
        (u32, S32),
        (s32, U32),
        (u32, U16),
        (u32, U64),
        (u32, BE32),
        (u32, array(U32, 1)),
        (u32, POINT),
        (u64, DOUBLE),
        (be16, U32),
        (f32, DOUBLE),
        (f64, U64),
        (float, U32),
        (int, DOUBLE),
        (int, array(U8, 4)),
        (int, POINT),
        (bool, DOUBLE),
        (str, U32),
        (str, array(U16, 4)),
        (str, array(CHAR, 2, 2)),
        (Annotated[str, Chars(12)], CHAR16),
        (Annotated[bytes, Bytes(12)], array(U8, 16)),
        (Annotated[bytes, Bytes(16)], array(U8, 0)),
        (Annotated[bytes, Bytes(0)], array(U8, 16)),
        (Annotated[tuple[bytes, ...], Array(Bytes(4), 2)], array(U8, 2, 5)),
        (IPv4, U64),
        (IPv6, array(U8, 4)),
        (device, S32),
        (device, U16),
        (tuple[int, ...], U32),
        (tuple[int, ...], CHAR16.element),
        (Annotated[tuple[int, ...], Array(u32, 3)], array(U32, 4)),
        (Annotated[tuple[int, ...], Array(s32, 4)], array(U32, 4)),
        (Annotated[u32, Offset(4)], U32),
    ],
)
def test_an_annotation_that_does_not_fit_is_a_difference(annotation: Any, layout: Any) -> None:
    with pytest.raises(EventLayoutError, match=r"check event One: it is not struct one"):
        read(annotation, layout, bytes(layout.size))


@pytest.mark.parametrize("annotation", [list[int], dict, "text", 5, tuple[int, int], int | None])
def test_an_annotation_that_no_field_can_have_is_refused(annotation: Any) -> None:
    wrong = pytest.raises((TypeError, EventLayoutError), match=r"One")
    with wrong:
        read(annotation, U32, bytes(4))


def test_the_differences_are_a_table() -> None:
    layout = struct(
        "open_event",
        40,
        ("header", 0, HEADER),
        ("fd", 24, S32),
        ("mode", 28, U16),
        ("kind", 30, U8, 1, 3),
        ("__pad1", 31, U8),
        ("path", 32, array(CHAR, 8)),
    )

    @kernel_event("open_event")
    class OpenEvent(KernelEvent):
        fd: u32
        flags: u16
        path: Annotated[str, Chars(16)]

    with pytest.raises(EventLayoutError) as caught:
        bind(OpenEvent, objects(layout))

    assert str(caught.value).splitlines() == [
        "check event OpenEvent: it is not struct open_event of the object (40 bytes)",
        "  field  offset  declared           object",
        "  fd     24      4 bytes, unsigned  int: 4 bytes, signed",
        "  flags          2 bytes, unsigned  (no such field)",
        "  path   32      16 bytes, text     char[8]: 8 bytes",
        "  mode   28      (not declared)     __u16: 2 bytes, unsigned",
        "  kind   30      (not declared)     __u8: 3 bits of 1 byte, unsigned",
    ]
    assert isinstance(caught.value, KernelTraceError)
    assert isinstance(caught.value, TypeError)


def test_a_partial_declaration_leaves_fields_out() -> None:
    @kernel_event("everything", partial=True)
    class Some(KernelEvent):
        comm: str
        fd: int

    event = bound(Some, EVERYTHING).from_bytes(RECORD)

    assert repr(event).endswith("fd=-2, comm='python3')")
    assert not hasattr(event, "matrix")
    assert event.header.type == 7


def test_enums_of_the_user_show_numbers() -> None:
    class Kind(IntEnum):
        A = 1

    class Flags(IntFlag):
        R = 1
        W = 2

    assert read(Kind, U32, packing.pack("=I", 1)) is Kind.A
    assert type(read(Kind, U32, packing.pack("=I", 9))) is int
    assert read(Flags, U8, b"\x03") == Flags.R | Flags.W
    assert read(Kind, U8, b"\x02", 1, 2) is Kind.A


def test_a_nested_class_that_differs_names_itself() -> None:
    @kernel_event("point")
    class Point(KernelEvent):
        x: u32
        y: s32

    @kernel_event("line")
    class Line(KernelEvent):
        a: Point

    with pytest.raises(EventLayoutError, match="check event Point: it is not struct point"):
        bound(Line, struct("line", 8, ("a", 0, POINT)))
    with pytest.raises(EventLayoutError, match=r"a +0 +struct point +__u64: 8 bytes, unsigned"):
        bound(Line, struct("line", 8, ("a", 0, U64)))


def test_a_plain_class_becomes_an_event_and_keeps_what_is_its_own() -> None:
    class Mixin:
        __slots__ = ()

        def shout(self) -> str:
            return str(self).upper()

    @kernel_event("point")
    class Point(Mixin):
        limit: ClassVar[int] = 7
        __x: int
        y: int

        def shout(self) -> str:
            return f"{__class__.__name__} {super().shout()}"  # type: ignore[name-defined]

        @property
        def both(self) -> int:
            return self.__x + self.y + self.limit

        @classmethod
        def who(cls) -> str:
            return cls.__name__

    event = bound(Point, struct("point", 8, ("__x", 0, S32), ("y", 4, S32))).from_bytes(
        packing.pack("=ii", 1, 2)
    )

    assert isinstance(event, KernelEvent)
    assert isinstance(event, Mixin)
    assert event.both == 10
    assert event.shout() == "Point POINT(_POINT__X=1, Y=2)"
    assert event.who() == "Point"
    assert not hasattr(event, "__dict__")


def test_declarations_are_inherited() -> None:
    class Base(KernelEvent):
        fd: s32

    @kernel_event("both")
    class Derived(Base):
        size: u32

    event = bound(Derived, struct("both", 8, ("fd", 0, S32), ("size", 4, U32))).from_bytes(
        packing.pack("=iI", -1, 2)
    )

    assert (event.fd, event.size) == (-1, 2)


def test_an_annotation_that_cannot_be_evaluated_says_so() -> None:
    @kernel_event("point")
    class Point(KernelEvent):
        x: Missing  # type: ignore[name-defined]  # noqa: F821
        y: s32

    with pytest.raises(EventLayoutError, match=r"check event Point: an annotation .*'Missing'"):
        bound(Point, POINT)


def test_binding_to_equal_layouts_gives_one_class_and_to_others_another() -> None:
    @kernel_event("pair")
    class Pair(KernelEvent):
        a: int

    def layout(size: int, element: Any) -> Any:
        return struct("pair", size, ("a", 0, element))

    one = bound(Pair, layout(4, U32))

    assert bound(Pair, layout(4, U32)) is one
    assert bound(Pair, layout(8, U64)) is not one
    assert bound(one, layout(4, U32)) is one
    with pytest.raises(TypeError, match="its layout is not known"):
        Pair.from_bytes(bytes(4))


def test_a_declared_struct_at_the_end_has_the_rest_of_the_record() -> None:
    @kernel_event("stack")
    class Stack(KernelEvent):
        depth: u32
        frames: Annotated[tuple[int, ...], Array(u32, 0)]

    @kernel_event("outer")
    class Outer(KernelEvent):
        number: u64
        stack: Stack

    stack = struct("stack", 4, ("depth", 0, U32), ("frames", 4, array(U32, 0)))
    made = bound(Outer, struct("outer", 12, ("number", 0, U64), ("stack", 8, stack)))

    event = made.from_bytes(packing.pack("=QIII", 1, 2, 3, 4))
    assert (type(event.stack).__name__, event.stack.frames) == ("Stack", (3, 4))


def test_records_with_a_tag_are_told_by_it() -> None:
    layout = struct("ping", 32, ("header", 0, HEADER), ("value", 24, U64))

    found = bind("ping", objects(layout, POINT, ping=9))

    assert found.selector == Selector(32, True, 0, 2, (9,))
    assert found.keep is None
    assert bind("point", objects(layout, POINT, ping=9)).selector == Selector(8, True)
    assert found.cls.__name__ == "Ping"


def test_a_flexible_struct_may_have_more_bytes() -> None:
    layout = struct("blob", 4, ("size", 0, U32), ("data", 4, array(U8, 0)))

    assert bind("blob", objects(layout)).selector == Selector(4, False)


def test_a_flexible_struct_may_have_fewer_bytes_than_c_pads_it_to() -> None:
    layout = struct("blob", 16, ("time", 0, U64), ("n", 8, U32), ("data", 12, array(U16, 0)))
    outer = struct("outer", 24, ("time", 0, U64), ("blob", 8, layout))

    found = bind("blob", objects(layout))
    assert found.selector == Selector(12, False)
    event: Any = found.cls.from_bytes(packing.pack("=QI", 1, 0))
    assert (event.n, event.data) == (0, ())
    assert bind("outer", objects(outer)).selector == Selector(20, False)
    with pytest.raises(OptionError, match="11 bytes, not 12 or more"):
        found.cls.from_bytes(bytes(11))


def test_a_perf_buffer_pads_its_records() -> None:
    assert [perf_padding(size) for size in (4, 5, 11, 12, 13, 64)] == [0, 7, 1, 0, 7, 4]
    assert bind("point", objects(POINT), perf=True).selector == Selector(8, True, padding=4)


def test_a_perf_buffer_pads_no_record_that_says_its_size() -> None:
    blob = struct("blob", 24, ("header", 0, HEADER), ("data", 24, array(U8, 0)))
    spot = struct("spot", 40, ("header", 0, HEADER), ("at", 24, array(U32, 4)))
    ours, others = objects(HEADER, blob, spot, POINT, blob=1, spot=2), objects(POINT)

    assert (perf_is_sized(ours), perf_is_sized(others)) == (True, False)
    assert bind("blob", ours, perf=True).selector == Selector(24, False, 0, 2, (1,))
    assert bind("spot", ours, perf=True).selector == Selector(40, True, 0, 2, (2,))
    by_field = bind("spot", ours, where=("header.type", 3), perf=True)
    assert by_field.selector == Selector(40, True, 0, 2, (3,))
    assert bind("point", ours, perf=True).selector == Selector(8, True, padding=4)


def test_a_struct_that_the_object_has_not_is_missed_by_name() -> None:
    with pytest.raises(EventLayoutError, match=r"bind event poitn: .*did you mean point"):
        bind("poitn", objects(POINT))
    with pytest.raises(EventLayoutError, match="it has point"):
        bind("zzz", objects(POINT))
    with pytest.raises(EventLayoutError, match="it names no struct"):
        bind(KernelEvent, objects(POINT))
    with pytest.raises(EventLayoutError, match="it names no struct"):
        bind(5, objects(POINT))  # type: ignore[call-overload]


MIXED = struct(
    "mixed",
    16,
    ("kind", 0, U8),
    ("letter", 1, CHAR),
    ("port", 2, BE32),
    ("delta", 8, S32),
    ("low", 12, U8, 0, 3),
    ("at", 13, struct("at", 2, ("where", 0, U16))),
)


@pytest.mark.parametrize(
    ("where", "tag"),
    [
        (("kind", 3), (0, 1, (3,))),
        (("kind", (3, 4)), (0, 1, (3, 4))),
        (("letter", "R"), (1, 1, (ord("R"),))),
        (("letter", -1), (1, 1, (255,))),
        (("letter", ["R", b"W"]), (1, 1, (ord("R"), ord("W")))),
        (("port", 1), (2, 4, (int.from_bytes(b"\0\0\0\1", sys.byteorder),))),
        (("delta", -2), (8, 4, (2**32 - 2,))),
        (("at.where", range(2)), (13, 2, (0, 1))),
    ],
)
def test_records_of_an_object_without_tags_are_told_by_a_field(where: Any, tag: Any) -> None:
    found = bind("mixed", objects(MIXED, mixed=7), where=where)

    assert found.selector == Selector(16, True, *tag)


@pytest.mark.parametrize(
    ("where", "cause"),
    [
        (("nope", 3), r"struct mixed has no field nope \(it has kind, "),
        (("prot", 3), r"struct mixed has no field prot \(did you mean port\?\)"),
        (("kind.more", 3), r"__u8 has no field more \(it has none\)"),
        (("at", 3), "no whole number"),
        (("low", 3), "bit field"),
        (("kind", 256), "does not fit in 1 bytes, unsigned"),
        (("kind", -1), "does not fit"),
        (("kind", 1.5), "no whole number"),
        (("port", "R"), "no whole number"),
        ("kind", "neither"),
        (("kind",), "neither"),
        (("kind", []), "no value is given"),
        (7, "neither"),
    ],
)
def test_a_field_that_cannot_tell_records_apart_is_refused(where: Any, cause: str) -> None:
    with pytest.raises(OptionError, match=f"tell records apart by .*{cause}"):
        bind("mixed", objects(MIXED), where=where)


def test_a_field_that_is_an_enum_takes_its_names() -> None:
    layout = struct("told", 8, ("state", 0, STATE), ("n", 4, U32))

    named = bind("told", objects(layout), where=("state", ["OPEN", 2, "CLOSED"]))
    assert named.selector == Selector(8, True, 0, 4, (1, 2))
    with pytest.raises(OptionError, match="'SHUT' is no whole number, nor one of OPEN, CLOSED"):
        bind("told", objects(layout), where=("state", "SHUT"))


def test_a_function_tells_records_apart() -> None:
    frames = frames_of(b"\1" * 16, b"\2" * 16, b"\1" * 15, b"", b"\1" * 16)
    found = bind("mixed", objects(MIXED, mixed=7), where=lambda record: record[:1] == b"\1")
    assert found.keep is not None

    kept, others = found.keep(frames)

    assert (kept, others) == (frames_of(b"\1" * 16, b"\1" * 15, b"\1" * 16), 2)
    assert found.keep(kept) == (kept, 0)
    assert found.selector.count(kept) == (2, 0, 1)
    with pytest.raises(OptionError, match="read frames: the record at byte"):
        found.keep(frames[:-1])

    def broken(record: bytes) -> bool:
        raise LookupError(record)

    failing = bind("mixed", objects(MIXED), where=broken)
    assert failing.keep is not None
    with pytest.raises(LookupError):
        failing.keep(frames)


def test_what_is_bound_reads_a_ring() -> None:
    from unit.typed_events import Everything

    found = bind(Everything, objects(EVERYTHING, POINT, everything=7))
    batches = [(frames_of(RECORD, bytes(8), RECORD), 0, 2), None]
    reader = Reader(found.cls, found.selector, lambda: batches.pop(0), None)  # type: ignore[arg-type]

    assert [event.comm for event in reader] == ["python3", "python3"]


def test_devices_and_errors_have_names() -> None:
    assert str(Device.from_kernel(8 << 20 | 17)) == "8:17"
    assert Device.from_kernel(0xFFFFFFFF) == (4095, 1048575)
    assert [error_name(number) for number in (-2, -11, -9999, 0, 5)] == [
        "ENOENT",
        "EAGAIN",
        "-9999",
        None,
        None,
    ]


def test_a_type_checker_knows_the_fields(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    repository = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "tests/unit/typed_events.py"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (found.stdout.splitlines()[-1:], found.stderr, found.returncode) == (
        ["Success: no issues found in 1 source file"],
        "",
        0,
    ), found.stdout


def test_the_shapes_say_what_they_are() -> None:
    assert Array(u16, 4).describe() == "4 x (2 bytes, unsigned)"
    assert Array(Array(s16), 0).describe() == "the rest x (any number x (2 bytes, signed))"
    assert [Bytes(length).describe() for length in (0, 1, 16)] == [
        "the rest, bytes", "1 byte", "16 bytes",
    ]  # fmt: skip
