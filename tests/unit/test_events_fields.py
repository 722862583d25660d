"""Events and their fields: exact values from known bytes, by the extension and by its twin."""

from __future__ import annotations

import contextlib
import copy
import gc
import ipaddress
import math
import pickle
import struct
import sys
import weakref
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneltrace_core.errors import OptionError
from unit.events_engines import load_engine, make_event

REST = -1


class Color(IntEnum):
    RED = 1
    BLUE = 2


@pytest.fixture(params=["c", "python"])
def engine(request: pytest.FixtureRequest) -> Any:
    return load_engine(request.param)


def read(engine: Any, data: bytes, *place: Any, **more: Any) -> Any:
    """Return the value of one field over these bytes."""
    event = make_event(engine, len(data), x=engine.Field(*place, **more)).from_bytes(data)
    return event.x


@pytest.mark.parametrize(
    ("code", "kind", "values"),
    [
        ("=B", "u", (0, 255)),
        ("=H", "u", (0, 65535)),
        ("=I", "u", (0, 2**32 - 1)),
        ("=Q", "u", (0, 2**64 - 1)),
        ("=b", "s", (-128, 127)),
        ("=h", "s", (-(2**15), 2**15 - 1)),
        ("=i", "s", (-(2**31), 2**31 - 1)),
        ("=q", "s", (-(2**63), 2**63 - 1)),
        (">H", "U", (0x1234, 65535)),
        (">I", "U", (0x12345678, 2**32 - 1)),
        (">Q", "U", (0x123456789ABCDEF0, 2**64 - 1)),
        (">B", "U", (0, 200)),
        (">h", "S", (-2, 2**15 - 1)),
        (">i", "S", (-2, -(2**31))),
        (">q", "S", (-2, -(2**63))),
        ("=f", "f", (0.5, -math.inf)),
        ("=d", "f", (0.1, -1e300)),
    ],
)
def test_numbers_are_read_at_any_offset(
    engine: Any, code: str, kind: str, values: tuple[float, ...]
) -> None:
    for value in values:
        packed = struct.pack(code, value)
        for offset in (0, 1, 7):
            data = b"\xa5" * offset + packed + b"\x5a"

            assert read(engine, data, offset, len(packed), kind) == value


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_any_bit_makes_a_bool_true(engine: Any, size: int) -> None:
    assert read(engine, bytes(size), 0, size, "?") is False
    assert read(engine, bytes(size - 1) + b"\x80", 0, size, "?") is True
    assert read(engine, b"\x02" + bytes(size - 1), 0, size, "?") is True


def test_text_ends_at_the_first_nul_and_keeps_what_is_no_utf8(engine: Any) -> None:
    assert read(engine, b"abc\0def\0", 0, 8, "c") == "abc"
    assert read(engine, b"abcdefgh", 0, 8, "c") == "abcdefgh"
    assert read(engine, b"\0bcdefgh", 0, 8, "c") == ""
    assert read(engine, "pfad/ü€".encode() + b"\0", 0, 11, "c") == "pfad/ü€"
    assert read(engine, b"a\xff\xc3", 0, 3, "c") == "a\\xff\\xc3"
    assert read(engine, b"", 0, 0, "c") == ""


def test_what_is_left_of_the_record_is_text_bytes_or_elements(engine: Any) -> None:
    fields = {
        "text": engine.Field(4, REST, "c"),
        "rest": engine.Field(4, REST, "b"),
        "pairs": engine.Field(4, 2, "u", shape=(REST, 2)),
    }
    flexible = make_event(engine, 4, exact=False, **fields)
    event = flexible.from_bytes(bytes(4) + struct.pack("=5H", 0x6161, 0x6262, 3, 4, 5) + b"!")

    assert event.text == "aabb\x03"
    assert event.rest == b"aabb\x03\0\x04\0\x05\0!"
    assert event.pairs == ((0x6161, 0x6262), (3, 4))
    empty = flexible.from_bytes(bytes(4))
    assert (empty.text, empty.rest, empty.pairs) == ("", b"", ())


def test_arrays_are_tuples_of_tuples(engine: Any) -> None:
    data = struct.pack("=6h", 1, -2, 3, -4, 5, -6)

    assert read(engine, data, 0, 2, "s", shape=(6,)) == (1, -2, 3, -4, 5, -6)
    assert read(engine, data, 0, 2, "s", shape=(3, 2)) == ((1, -2), (3, -4), (5, -6))
    assert read(engine, data, 2, 2, "s", shape=(1, 1, 2)) == (((-2, 3),),)
    assert read(engine, data, 0, 2, "s", shape=(0,)) == ()
    assert read(engine, data, 0, 2, "s", shape=(2, 0)) == ((), ())
    assert read(engine, b"ab\0\0cd\0\0", 0, 4, "c", shape=(2,)) == ("ab", "cd")


def test_bit_fields_cross_bytes_and_have_signs(engine: Any) -> None:
    number = 0b10110_011_1111111_1_0110
    data = number.to_bytes(9, sys.byteorder)

    def bits(offset: int, size: int, kind: str = "u") -> Any:
        return read(engine, data, 0, 9, kind, offset, size)

    if sys.byteorder == "little":
        assert [bits(0, 4), bits(4, 1), bits(5, 7), bits(12, 3), bits(15, 5)] == [6, 1, 127, 3, 22]
        assert [bits(0, 4, "s"), bits(5, 7, "s"), bits(15, 5, "s")] == [6, -1, -10]
        assert bits(4, 1, "?") is True
        assert bits(20, 30, "?") is False
    whole = (1 << 72) - 1
    assert read(engine, whole.to_bytes(9, "little"), 0, 9, "u", 7, 64) == 2**64 - 1
    assert read(engine, whole.to_bytes(9, "little"), 0, 9, "s", 8, 64) == -1


def test_raw_values_are_converted_by_a_function_or_a_table(engine: Any) -> None:
    table = {1: Color.RED, 2: Color.BLUE}

    assert read(engine, b"\x01\x02\x03", 0, 1, "u", shape=(3,), convert=table) == (1, 2, 3)
    assert read(engine, b"\x02", 0, 1, "u", convert=table) is Color.BLUE
    assert type(read(engine, b"\x03", 0, 1, "u", convert=table)) is int
    assert read(engine, b"\x05", 0, 1, "u", 1, 2, convert=table) is Color.BLUE
    address = read(engine, bytes((127, 0, 0, 1)), 0, 4, "b", convert=ipaddress.IPv4Address)
    assert address == ipaddress.IPv4Address("127.0.0.1")
    with pytest.raises(ZeroDivisionError):
        read(engine, b"\x00", 0, 1, "u", convert=lambda value: 1 // value)


def test_nested_structs_are_events_with_the_same_origin(engine: Any) -> None:
    point = make_event(engine, 2, x=engine.Field(0, 1, "s"), y=engine.Field(1, 1, "s"))
    outer = make_event(
        engine,
        6,
        one=engine.Field(0, 2, "n", convert=point),
        more=engine.Field(2, 2, "n", shape=(2,), convert=point),
    )
    event = outer.from_bytes(b"\x01\xff\x02\xfe\x03\xfd", 5)

    assert (event.one.x, event.one.y, event.one.origin) == (1, -1, 5)
    assert [(each.x, each.y) for each in event.more] == [(2, -2), (3, -3)]
    assert event.one == point.from_bytes(b"\x01\xff")
    assert event.as_dict() == {
        "one": {"x": 1, "y": -1},
        "more": ({"x": 2, "y": -2}, {"x": 3, "y": -3}),
    }
    assert repr(event) == "Event(one=Event(x=1, y=-1), more=(Event(x=2, y=-2), Event(x=3, y=-3)))"


@pytest.mark.parametrize(
    ("place", "more"),
    [
        ((0, 4, "x"), {}),
        ((0, 4, ""), {}),
        ((0, 4, "uu"), {}),
        ((-1, 4, "u"), {}),
        ((1 << 40, 4, "u"), {}),
        ((0, -2, "c"), {}),
        ((0, 1 << 40, "c"), {}),
        ((0, 3, "u"), {}),
        ((0, 0, "u"), {}),
        ((0, 16, "s"), {}),
        ((0, 2, "f"), {}),
        ((0, REST, "u"), {}),
        ((0, REST, "c"), {"shape": (2,)}),
        ((0, 0, "b"), {"shape": (2,)}),
        ((0, 1, "u"), {"shape": (-2,)}),
        ((0, 1, "u"), {"shape": (2, REST)}),
        ((0, 1, "u"), {"shape": (1 << 40,)}),
        ((0, 1, "u"), {"shape": (1 << 20, 1 << 20)}),
        ((0, 1, "u"), {"shape": (1 << 100,)}),
        ((0, 1, "u"), {"shape": (1,) * 9}),
        ((0, 4, "u", 0, 65), {}),
        ((0, 4, "u", 64, 1), {}),
        ((0, 4, "u", -1, 1), {}),
        ((0, 4, "u", 0, -1), {}),
        ((0, 4, "U", 0, 3), {}),
        ((0, 4, "c", 0, 3), {}),
        ((0, 4, "u", 0, 3), {"shape": (2,)}),
        ((0, 4, "n"), {}),
        ((0, 4, "n"), {"convert": int}),
        ((0, 4, "n"), {"convert": len}),
    ],
)
def test_a_field_that_fits_no_record_is_refused(engine: Any, place: Any, more: Any) -> None:
    with pytest.raises(OptionError, match="describe field: "):
        engine.Field(*place, **more)


def test_a_field_tells_what_it_is_and_cannot_be_changed(engine: Any) -> None:
    field = engine.Field(4, 2, "u", shape=(3, 2), convert=Color)
    event = make_event(engine, 16, x=field)

    assert event.x is field
    assert (field.offset, field.size, field.kind, field.shape) == (4, 2, "u", (3, 2))
    assert (field.bit_offset, field.bit_size, field.convert) == (0, 0, Color)
    with pytest.raises(AttributeError):
        field.__set__(event.from_bytes(bytes(16)), 1)
    with pytest.raises(AttributeError):
        field.offset = 90


def test_a_field_reads_no_byte_that_its_event_has_not(engine: Any) -> None:
    short = make_event(engine, 4).from_bytes(b"abcd")
    for field in (
        engine.Field(4, 1, "u"),
        engine.Field(1, 4, "u"),
        engine.Field(0, 8, "c"),
        engine.Field(3, 1, "u", shape=(2,)),
        engine.Field(0, 4, "u", 30, 3),
        engine.Field(5, REST, "c"),
    ):
        with pytest.raises(OptionError, match="read field: the event has 4 bytes, the field ends"):
            field.__get__(short)
    for stranger in (object(), 5, b"abcd"):
        with pytest.raises(TypeError, match="is not an event"):
            engine.Field(0, 1, "u").__get__(stranger)
    assert engine.Field(9, 2, "u", shape=(REST,)).__get__(short) == ()


def test_an_event_is_made_of_as_many_bytes_as_its_struct_has(engine: Any) -> None:
    exact = make_event(engine, 4, x=engine.Field(0, 4, "c"))
    flexible = make_event(engine, 4, exact=False)

    assert exact.from_bytes(bytearray(b"abcd")).x == "abcd"
    assert bytes(exact.from_bytes(memoryview(b"abcd"))) == b"abcd"
    assert bytes(flexible.from_bytes(b"abcdef")) == b"abcdef"
    for data in (b"", b"abc", b"abcde"):
        with pytest.raises(OptionError, match=f"make Event: {len(data)} bytes, not 4$"):
            exact.from_bytes(data)
    with pytest.raises(OptionError, match="make Event: 3 bytes, not 4 or more"):
        flexible.from_bytes(b"abc")
    for data in (4, "abcd", None, [1, 2, 3, 4]):
        with pytest.raises(TypeError):
            exact.from_bytes(data)
    for origin in (-1, 1 << 32):
        with pytest.raises(OptionError, match="origin"):
            exact.from_bytes(b"abcd", origin)


def test_a_class_without_a_layout_makes_no_events(engine: Any) -> None:
    unbound = type("Unbound", (engine.KernelEvent,), {"__slots__": ()})

    for act in (
        lambda: unbound.from_bytes(b""),
        lambda: engine.KernelEvent.from_bytes(b""),
        lambda: engine.KernelEvent(),
        lambda: make_event(engine, 4)(b"abcd"),
        lambda: make_event(engine, -1).from_bytes(b""),
        lambda: make_event(engine, "4").from_bytes(b"abcd"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"make (Unbound|KernelEvent|Event): "):
            act()


def test_an_event_does_not_change(engine: Any) -> None:
    cls = make_event(engine, 4, x=engine.Field(0, 4, "u"))
    longer = make_event(engine, 400, y=engine.Field(300, 4, "u"))
    event = cls.from_bytes(b"abcd")

    for name, value in (("x", 1), ("origin", 1), ("new", 1), ("__class__", longer)):
        with pytest.raises(AttributeError, match="events are immutable"):
            setattr(event, name, value)
        with pytest.raises(AttributeError, match="events are immutable"):
            delattr(event, name)
    assert bytes(event) == b"abcd"
    assert not hasattr(event, "__dict__")


def test_an_event_that_was_forced_into_a_longer_class_is_not_read_beyond_its_end(
    engine: Any,
) -> None:
    longer = make_event(engine, 400, y=engine.Field(300, 4, "u"))
    event = make_event(engine, 4).from_bytes(b"abcd")

    with contextlib.suppress(TypeError):  # refused before 3.13
        object.__setattr__(event, "__class__", longer)

    with pytest.raises((OptionError, AttributeError)):
        event.y  # noqa: B018
    assert bytes(event) == b"abcd"


def test_events_are_equal_by_class_and_bytes(engine: Any) -> None:
    cls, other = make_event(engine, 4), make_event(engine, 4)
    event = cls.from_bytes(b"abcd")

    assert event == cls.from_bytes(b"abcd", 7)
    assert event != cls.from_bytes(b"abce")
    assert event != other.from_bytes(b"abcd")
    assert event != b"abcd"
    assert hash(event) == hash(cls.from_bytes(b"abcd"))
    assert len({event, cls.from_bytes(b"abcd"), cls.from_bytes(b"xxxx")}) == 2
    with pytest.raises(TypeError):
        event < event  # noqa: B015
    assert copy.copy(event) is event
    assert copy.deepcopy([event])[0] is event


MADE: dict[str, Any] = {}


def remake(name: str, data: bytes, origin: int) -> Any:
    return MADE[name].from_bytes(data, origin)


def test_events_pickle_through_what_made_their_class(engine: Any) -> None:
    cls = MADE["Made"] = make_event(engine, 4, _reduce_=(remake, "Made"))
    event = cls.from_bytes(b"abcd", 3)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(event, protocol))
        assert (again, again.origin) == (event, 3)


def test_a_subclass_may_have_methods_and_attributes(engine: Any) -> None:
    base = make_event(engine, 4, x=engine.Field(0, 4, "u"))

    class Loose(base):  # with a __dict__, so with the collector
        def twice(self) -> int:
            return 2 * self.x

    event = Loose.from_bytes(struct.pack("=I", 21))
    assert event.twice() == 42
    assert bytes(event) == struct.pack("=I", 21)
    assert isinstance(event, base)
    del event
    gc.collect()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_an_event_keeps_its_class_and_nothing_else() -> None:
    engine = load_engine("c")
    cls = make_event(engine, 64, x=engine.Field(0, 8, "u"))
    data = bytes(64)
    classes, bytes_ = sys.getrefcount(cls), sys.getrefcount(data)
    events = [cls.from_bytes(data) for _ in range(1000)]

    assert sys.getrefcount(cls) == classes + 1000
    assert sys.getrefcount(data) == bytes_
    assert sys.getsizeof(events[0]) <= 64 + 32 + 16  # what the collector adds
    assert not gc.is_tracked(events[0])
    del events
    assert sys.getrefcount(cls) == classes


def test_classes_fields_and_converters_in_a_circle_are_collected(engine: Any) -> None:
    def make() -> Any:
        cls: Any = make_event(engine, 4)
        cls.x = engine.Field(0, 1, "u", convert=lambda value: cls)
        assert cls.from_bytes(b"abcd").x is cls
        return weakref.ref(cls)

    gone = make()
    gc.collect()

    assert gone() is None


def test_reading_leaves_no_reference_behind(engine: Any) -> None:
    calls = []
    inner = make_event(engine, 2, a=engine.Field(0, 1, "u"))
    cls = make_event(
        engine,
        16,
        number=engine.Field(0, 8, "u"),
        text=engine.Field(0, 4, "c"),
        raw=engine.Field(0, 4, "b"),
        pairs=engine.Field(0, 2, "u", shape=(2, 2)),
        nested=engine.Field(0, 2, "n", shape=(2,), convert=inner),
        color=engine.Field(0, 1, "u", convert={1: Color.RED}),
        called=engine.Field(0, 1, "u", convert=calls.append),
        bits=engine.Field(0, 4, "s", 3, 9),
        real=engine.Field(8, 8, "f"),
    )
    event = cls.from_bytes(b"\x01" + bytes(15))

    def work() -> None:
        for _ in range(50):
            repr(event)
            hash(event)
            event.as_dict()
            assert event == cls.from_bytes(bytes(event))
            event.__reduce__()
            for act in (lambda: event.nothing, lambda: cls.from_bytes(b""), lambda: cls()):
                with pytest.raises((AttributeError, OptionError, TypeError)):
                    act()
        calls.clear()

    work()
    gc.collect()
    before = [sys.getrefcount(each) for each in (cls, inner, Color.RED, None, event)]
    blocks = sys.getallocatedblocks()
    for _ in range(10):
        work()
    gc.collect()
    after = [sys.getrefcount(each) for each in (cls, inner, Color.RED, None, event)]

    # One lost in each of 500 rounds would be 500.
    assert all(now - then < 400 for then, now in zip(before, after, strict=True))
    assert sys.getallocatedblocks() - blocks < 400


def places() -> Any:
    """Return fields, most of them sensible."""
    numbers = st.tuples(
        st.integers(0, 24), st.sampled_from([1, 2, 4, 8]), st.sampled_from("usUS?"), st.just({})
    )
    floats = st.tuples(st.integers(0, 24), st.sampled_from([4, 8]), st.just("f"), st.just({}))
    raws = st.tuples(st.integers(0, 24), st.integers(-1, 20), st.sampled_from("cb"), st.just({}))
    arrays = st.tuples(
        st.integers(0, 24),
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from("usUS?cb"),
        st.lists(st.integers(-1, 4), max_size=3).map(lambda shape: {"shape": tuple(shape)}),
    )
    bits = st.tuples(
        st.integers(0, 24),
        st.just(8),
        st.sampled_from("us?"),
        st.fixed_dictionaries({"bit_offset": st.integers(0, 63), "bit_size": st.integers(0, 64)}),
    )
    wild = st.tuples(
        st.integers(-2, 40),
        st.integers(-2, 20),
        st.sampled_from(["u", "s", "S", "f", "c", "b", "n", "?", "z", ""]),
        st.fixed_dictionaries(
            {},
            optional={
                "shape": st.lists(st.integers(-2, 5), max_size=9).map(tuple),
                "bit_offset": st.integers(-1, 70),
                "bit_size": st.integers(-1, 70),
                # Not bytes, which makes gigabytes of a number.
                "convert": st.sampled_from([{0: "zero"}, {}, str, chr, None]),
            },
        ),
    )
    return st.one_of(numbers, floats, raws, arrays, bits, wild)


@settings(max_examples=600)
@given(st.lists(places(), min_size=1, max_size=6), st.binary(max_size=48), st.integers(0, 48))
def test_the_extension_reads_what_its_twin_reads(fields: list[Any], data: bytes, size: int) -> None:
    def outcome(name: str) -> list[object]:
        engine = load_engine(name)
        seen: list[object] = []
        made = {}
        for number, (offset, length, kind, more) in enumerate(fields):
            try:
                made[f"f{number}"] = engine.Field(offset, length, kind, **more)
            except (OptionError, TypeError) as error:
                seen.append(type(error))
        cls = make_event(engine, min(size, len(data)), exact=False, **made)
        event = cls.from_bytes(data)
        seen += [hash(event), bytes(event)]
        for name in made:
            try:
                seen.append(repr(getattr(event, name)))
            except Exception as error:  # noqa: BLE001 - the same one is wanted of both
                seen.append(type(error))
        return seen

    assert outcome("c") == outcome("python")
