"""Keys and values: what goes in comes out, and what does not fit is refused with its numbers."""

from __future__ import annotations

import ipaddress
import sys
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.map_layouts import CHAR, U32, U64, text
from kerneltrace_core.btf.layout import ArrayLayout, FieldLayout, Scalar, StructLayout, TypeLayout
from kerneltrace_core.errors import KernelTraceError, OptionError
from kerneltrace_core.maps.codec import Codec

U8 = Scalar(1, signed=False, kind="int", name="__u8")
U16 = Scalar(2, signed=False, kind="int", name="__u16")
S32 = Scalar(4, signed=True, kind="int", name="__s32")
BE16 = Scalar(2, signed=False, kind="int", big_endian=True, name="__be16")
BE32 = Scalar(4, signed=False, kind="int", big_endian=True, name="__be32")
DOUBLE = Scalar(8, signed=True, kind="float", name="double")
BOOL = Scalar(1, signed=False, kind="bool", name="_Bool")
COLOR = Scalar(4, signed=False, kind="enum", name="color", values=(("RED", 1), ("GREEN", 2)))


def struct(name: str, *fields: tuple[str, TypeLayout], is_union: bool = False) -> StructLayout:
    """Lay members out one after the other, each at a multiple of its size, up to 8."""
    members, at, most = [], 0, 0
    for field, layout in fields:
        align = min(8, max(1, layout.size & -layout.size))
        offset = 0 if is_union else -(-at // align) * align
        members.append(FieldLayout(field, offset, layout))
        at, most = offset + layout.size, max(most, layout.size)
    size = -(-(most if is_union else at) // 8) * 8
    return StructLayout(name, size, tuple(members), is_union)


KEY = struct("key", ("pid", U32), ("name", text(8)), ("color", COLOR), ("inode", U64))


@pytest.mark.parametrize(
    ("layout", "value", "encoded"),
    [
        (U32, 1, (1).to_bytes(4, sys.byteorder)),
        (S32, -2, (-2).to_bytes(4, sys.byteorder, signed=True)),
        (BE16, 443, b"\x01\xbb"),
        (BOOL, True, b"\1"),
        (COLOR, "GREEN", (2).to_bytes(4, sys.byteorder)),
        (text(4), "ab", b"ab\0\0"),
        (text(4), "abcd", b"abcd"),
        (text(4), "é", b"\xc3\xa9\0\0"),
        (ArrayLayout(U8, 3), b"\1\2\3", b"\1\2\3"),
        (ArrayLayout(U8, 3), [1, 2, 3], b"\1\2\3"),
        (ArrayLayout(BE16, 2), (1, 2), b"\0\1\0\2"),
        (BE32, ipaddress.ip_address("10.0.0.1"), b"\x0a\0\0\1"),
        (U32, ipaddress.ip_address("10.0.0.1"), b"\x0a\0\0\1"),
        (ArrayLayout(U8, 16), ipaddress.ip_address("::1"), bytes(15) + b"\1"),
        (U64, b"12345678", b"12345678"),
        (U64, bytearray(b"12345678"), b"12345678"),
        (U64, memoryview(b"12345678"), b"12345678"),
    ],
)
def test_values_become_the_bytes_of_c(layout: TypeLayout, value: Any, encoded: bytes) -> None:
    assert Codec(layout).encode(value) == encoded


@pytest.mark.parametrize(
    ("layout", "encoded", "value"),
    [
        (BE32, b"\x0a\0\0\1", 0x0A000001),
        (BOOL, b"\2", True),
        (text(4), b"ab\0x", "ab"),
        (text(2), b"\xffa", "\\xffa"),
        (ArrayLayout(U8, 3), b"\1\2\3", b"\1\2\3"),
        (ArrayLayout(BE16, 2), b"\0\1\0\2", (1, 2)),
        (ArrayLayout(ArrayLayout(BE16, 2), 2), b"\0\1\0\2\0\3\0\4", ((1, 2), (3, 4))),
        (None, b"abcd", b"abcd"),
    ],
)
def test_bytes_become_values(layout: TypeLayout | None, encoded: bytes, value: Any) -> None:
    assert Codec(layout, len(encoded)).decode(encoded) == value


def test_an_enum_is_its_member_and_stays_a_number_without_a_name() -> None:
    known = Codec(COLOR).decode((2).to_bytes(4, sys.byteorder))
    assert isinstance(known, IntEnum)
    assert known.name == "GREEN"
    assert Codec(COLOR).decode((9).to_bytes(4, sys.byteorder)) == 9


def test_a_struct_takes_a_mapping_a_sequence_an_event_and_bytes() -> None:
    codec = Codec(KEY)
    data = codec.encode({"pid": 1, "name": "x", "color": "RED", "inode": 5})

    event = codec.decode(data)

    assert (event.pid, event.name, event.color, event.inode) == (1, "x", 1, 5)
    for same in (event, (1, "x", 1, 5), [1, b"x\0\0\0\0\0\0\0", "RED", 5], data, event.as_dict()):
        assert codec.encode(same) == data


@pytest.mark.parametrize(
    ("layout", "value", "told"),
    [
        (U32, -1, r"-1 does not fit __u32 \(0 to 4294967295\)"),
        (U32, 1 << 32, "4294967296 does not fit __u32"),
        (S32, 1 << 31, r"does not fit __s32 \(-2147483648 to 2147483647\)"),
        (BOOL, 2, r"2 does not fit _Bool \(0 to 1\)"),
        (U32, "1", "'1' is no number, __u32 takes one, or bytes"),
        (U32, 1.0, "1.0 is no number"),
        (U32, None, "None is no number"),
        (U32, b"123", "3 bytes given, __u32 has 4"),
        (U32, ipaddress.ip_address("::1"), "16 bytes given, __u32 has 4"),
        (COLOR, "BLUE", "'BLUE' is not one of RED, GREEN"),
        (DOUBLE, "1", "'1' is no number, double takes one"),
        (text(4), "abcde", r"'abcde' has 5 bytes, char\[4\] has 4"),
        (text(4), "a\0b", "has a NUL"),
        (text(4), "\ud800", "is no text"),
        (text(4), b"abc", r"3 bytes given, char\[4\] has 4"),
        (text(4), 5, r"5 is not what char\[4\] takes: str, or bytes"),
        (ArrayLayout(U16, 2), [1], r"1 values given, __u16\[2\] has 2"),
        (ArrayLayout(U16, 2), [1, 1 << 16], r"\[1\]: 65536 does not fit __u16"),
        (ArrayLayout(U16, 2), "ab", r"'ab' is not what __u16\[2\] takes: 2 values, or bytes"),
        (KEY, {"pid": 1}, "field name of struct key is not given"),
        (KEY, {"pid": 1, "name": "", "color": 1, "inode": 1, "x": 1}, "has no field 'x'"),
        (KEY, {"pid": -1, "name": "", "color": 1, "inode": 1}, "field pid: -1 does not fit"),
        (KEY, (1, 2), r"2 values given, struct key has 4 fields \(pid, name, color, inode\)"),
        (KEY, 7, "7 is not what struct key takes"),
        (KEY, b"123", "3 bytes given, struct key has 32"),
        (None, 5, "5 is no bytes; the object does not say of which type these 4 bytes are"),
    ],
)
def test_what_does_not_fit_is_refused(layout: TypeLayout | None, value: Any, told: str) -> None:
    codec = Codec(layout, layout.size if layout else 4)
    with pytest.raises(OptionError, match=told):
        codec.encode(value)


def test_sizes_are_compared_when_a_codec_is_made_and_used() -> None:
    with pytest.raises(OptionError, match="__u32 has 4 bytes, the map 8"):
        Codec(U32, 8)
    with pytest.raises(OptionError, match="3 bytes given, it has 4"):
        Codec(U32).decode(b"123")
    with pytest.raises(OptionError, match="neither a type nor a size"):
        Codec(None)


def test_a_key_that_is_no_clean_text_comes_back_as_bytes_that_find_it_again() -> None:
    codec = Codec(text(4), lossless=True)
    for data in (b"ab\0\0", b"abcd", b"\0\0\0\0"):
        assert isinstance(codec.decode(data), str)
    for data in (b"ab\0x", b"\xff\0\0\0", b"\0abc"):
        assert codec.decode(data) == data
    assert all(
        codec.encode(codec.decode(data)) == data for data in (b"ab\0\0", b"ab\0x", b"\xff\0\0\0")
    )


def test_of_a_union_one_field_is_given_or_several_that_agree() -> None:
    either = struct(
        "either", ("number", U32), ("half", U16), ("raw", ArrayLayout(U8, 8)), is_union=True
    )
    codec = Codec(either)
    little = sys.byteorder == "little"

    assert codec.encode({"raw": b"12345678"}) == b"12345678"
    assert codec.encode({"number": 1})[:4] == (1).to_bytes(4, sys.byteorder)
    whole = codec.decode((b"\1\0\0\0" if little else b"\0\0\0\1") + bytes(4))
    assert codec.encode(whole.as_dict()) == bytes(whole)
    with pytest.raises(OptionError, match=r"raw and number of union either share .* do not agree"):
        codec.encode({"number": 5, "raw": bytes(8)})
    with pytest.raises(OptionError, match="no field of union either is given"):
        codec.encode({})


def test_members_of_anonymous_structs_are_given_as_c_names_them() -> None:
    inner = struct("", ("low", U32), ("high", U32))
    union = StructLayout("", 8, (FieldLayout("whole", 0, U64), FieldLayout("", 0, inner)), True)
    outer = StructLayout(
        "outer", 16, (FieldLayout("class", 0, U32), FieldLayout("", 8, union)), False
    )
    codec = Codec(outer)

    assert codec.encode({"class_": 1, "whole": 2}) == codec.encode(
        {
            "class": 1,
            **({"low": 2, "high": 0} if sys.byteorder == "little" else {"low": 0, "high": 2}),
        }
    )
    with pytest.raises(OptionError, match="field high of struct"):
        codec.encode({"class": 1, "low": 2})


def test_bit_fields_keep_their_neighbours() -> None:
    place = 4 if sys.byteorder == "little" else 0
    bits = StructLayout(
        "bits",
        4,
        (
            FieldLayout("a", 0, U32, bit_offset=0, bit_size=3),
            FieldLayout("b", 0, U32, bit_offset=3, bit_size=5),
            FieldLayout("c", 1, S32, bit_offset=place, bit_size=4),
        ),
    )
    codec = Codec(bits)
    event = codec.decode(codec.encode({"a": 5, "b": 30, "c": -3}))
    assert (event.a, event.b, event.c) == (5, 30, -3)
    with pytest.raises(OptionError, match=r"field b: 32 does not fit 5 bits \(0 to 31\)"):
        codec.encode({"a": 5, "b": 32, "c": 0})
    with pytest.raises(OptionError, match=r"field c: 8 does not fit 4 bits \(-8 to 7\)"):
        codec.encode({"a": 5, "b": 0, "c": 8})


def test_what_the_kernel_keeps_inside_of_a_value_is_not_asked_for() -> None:
    lock = StructLayout("bpf_spin_lock", 4, (FieldLayout("val", 0, U32),))
    value = struct("value", ("lock", lock), ("count", U32))
    assert Codec(value).encode({"count": 1}) == Codec(value).encode((1,))
    assert Codec(value).decode(Codec(value).encode((1,))).count == 1


# ---- any type --------------------------------------------------------------------------------


@st.composite
def scalars(draw: st.DrawFn) -> Scalar:
    size = draw(st.sampled_from([1, 2, 4, 8, 16]))
    return Scalar(size, draw(st.booleans()), "int", draw(st.booleans()) and size > 1, f"int{size}")


def types() -> st.SearchStrategy[TypeLayout]:
    def arrays(inner: st.SearchStrategy[TypeLayout]) -> st.SearchStrategy[TypeLayout]:
        return st.builds(ArrayLayout, inner, st.integers(1, 4))

    def structs(inner: st.SearchStrategy[TypeLayout]) -> st.SearchStrategy[TypeLayout]:
        return st.lists(inner, min_size=1, max_size=4).map(
            lambda each: struct("any", *[(f"f{index}", one) for index, one in enumerate(each)])
        )

    texts = st.integers(1, 9).map(text)
    leaves = st.one_of(scalars(), texts, st.just(COLOR), st.just(BOOL))
    return st.recursive(
        leaves, lambda inner: st.one_of(arrays(inner), structs(inner)), max_leaves=6
    )


def values_of(layout: TypeLayout) -> st.SearchStrategy[Any]:
    if isinstance(layout, StructLayout):
        return st.fixed_dictionaries(
            {field.name: values_of(field.type) for field in layout.members}
        )
    if isinstance(layout, ArrayLayout):
        element = layout.element
        if element == CHAR:
            return (
                st.binary(max_size=layout.count)
                .filter(lambda data: b"\0" not in data)
                .filter(_is_text)
                .map(bytes.decode)
            )
        if (
            isinstance(element, Scalar)
            and (element.size, element.signed) == (1, False)
            and (element.kind == "int")
        ):
            return st.binary(min_size=layout.count, max_size=layout.count)
        return st.tuples(*[values_of(element)] * layout.count)
    if layout.kind == "bool":
        return st.booleans()
    least = -(1 << 8 * layout.size - 1) if layout.signed else 0
    return st.integers(least, (1 << 8 * layout.size - layout.signed) - 1)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def plain(value: Any) -> Any:
    if hasattr(value, "as_dict"):
        return plain(value.as_dict())
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


@settings(deadline=None)
@given(st.data())
def test_any_value_of_any_type_comes_back(data: st.DataObject) -> None:
    layout = data.draw(types())
    value = data.draw(values_of(layout))
    codec = Codec(layout)

    encoded = codec.encode(value)

    assert len(encoded) == layout.size
    assert plain(codec.decode(encoded)) == value
    assert codec.encode(codec.decode(encoded)) == encoded


@settings(deadline=None)
@given(types(), st.data())
def test_any_bytes_of_the_right_number_are_decoded_and_others_refused(
    layout: TypeLayout, data: st.DataObject
) -> None:
    raw = data.draw(st.binary(max_size=layout.size + 4))
    codec = Codec(layout, lossless=True)
    if len(raw) == layout.size:
        assert codec.encode(codec.decode(raw)) == raw
    else:
        with pytest.raises(OptionError, match=str(len(raw))):
            codec.decode(raw)


@settings(deadline=None)
@given(
    types(),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.sampled_from(["f0", "f1", "f2", "x"]), inner, max_size=4),
        ),
        max_leaves=8,
    ),
)
def test_any_object_is_encoded_to_the_right_size_or_refused(layout: TypeLayout, value: Any) -> None:
    try:
        encoded = Codec(layout).encode(value)
    except KernelTraceError:
        return
    assert len(encoded) == layout.size
