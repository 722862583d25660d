from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.btf_encoder import BtfWriter
from kerneltrace_core.btf.format import Btf, parse_btf
from kerneltrace_core.btf.kinds import (
    Array,
    BtfType,
    DataSection,
    DeclTag,
    Enum,
    Float,
    Forward,
    Function,
    FunctionProto,
    Int,
    Member,
    Modifier,
    Pointer,
    SectionVariable,
    Struct,
    Typedef,
    TypeTag,
    Variable,
    Void,
)
from kerneltrace_core.errors import FormatError, KernelTraceError


@pytest.mark.parametrize("little", [True, False], ids=["little", "big"])
def test_every_kind_is_read_in_both_byte_orders(little: bool) -> None:
    writer = BtfWriter(little)
    number = writer.integer("int", 4, 1)
    writer.integer("char", 1, 2)
    writer.integer("_Bool", 1, 4)
    writer.add("ptr", "", number)
    writer.add("array", "", 0, number, number, 7)
    writer.structure("pair", 8, [("left", 1, 0, 0), ("bits", 1, 35, 3)])
    writer.structure("either", 4, [("left", 1, 0, 0)], flag=0, kind="union")
    writer.enum("state", 4, [("DOWN", -1), ("UP", 1)], signed=True)
    writer.enum("mask", 1, [("ALL", 0xFFFFFFFF)], signed=False)
    writer.enum64("wide", [("LOW", -(2**40)), ("HIGH", 2**62)], signed=True)
    writer.enum64("flags", [("TOP", 2**63)], signed=False)
    writer.add("fwd", "opaque", 0, flag=1)
    writer.add("typedef", "pid_t", number)
    writer.add("volatile", "", number)
    writer.add("const", "", number)
    writer.add("restrict", "", 4)
    writer.add("func_proto", "", number, writer.string("first"), number, 0, 0, count=2)
    writer.add("func", "run", 17, count=1)
    writer.add("var", "total", number, 1)
    writer.datasec(".bss", [(19, 8, 4)], 16)
    writer.add("float", "double", 8)
    writer.add("decl_tag", "user", 6, -1)
    writer.add("type_tag", "rcu", number)

    btf = parse_btf(writer.blob())

    assert btf.little is little
    assert btf.types == (
        Void(),
        Int("int", 4, 32, True, False, False),
        Int("char", 1, 8, False, True, False),
        Int("_Bool", 1, 8, False, False, True),
        Pointer("", 1),
        Array("", 1, 1, 7),
        Struct("pair", 8, (Member("left", 1, 0, 0), Member("bits", 1, 35, 3)), False),
        Struct("either", 4, (Member("left", 1, 0, 0),), True),
        Enum("state", 4, True, (("DOWN", -1), ("UP", 1))),
        Enum("mask", 1, False, (("ALL", 0xFFFFFFFF),)),
        Enum("wide", 8, True, (("LOW", -(2**40)), ("HIGH", 2**62))),
        Enum("flags", 8, False, (("TOP", 2**63),)),
        Forward("opaque", True),
        Typedef("pid_t", 1),
        Modifier("", 1),
        Modifier("", 1),
        Modifier("", 4),
        FunctionProto("", 1, (("first", 1), ("", 0))),
        Function("run", 17, 1),
        Variable("total", 1, 1),
        DataSection(".bss", 16, (SectionVariable(19, 8, 4),)),
        Float("double", 8),
        DeclTag("user", 6, -1),
        TypeTag("rcu", 1),
    )


def chain() -> tuple[BtfWriter, int]:
    """Write a const, restrict, tagged and twice renamed struct; return its outermost name's id."""
    writer = BtfWriter()
    struct = writer.structure("inner", 12, [])
    inner = writer.add("typedef", "inner_t", struct)
    tagged = writer.add("type_tag", "rcu", inner)
    const = writer.add("const", "", tagged)
    volatile = writer.add("volatile", "", const)
    restrict = writer.add("restrict", "", volatile)
    return writer, writer.add("typedef", "outer_t", restrict)


def test_a_type_is_found_below_its_other_names() -> None:
    writer, outer = chain()
    btf = parse_btf(writer.blob())

    assert btf.strip(outer) == 1
    assert btf.resolve(outer) == Struct("inner", 12, (), False)
    assert btf.size_of(outer) == 12
    assert btf.find("outer_t") == outer
    assert btf.find("inner", Struct) == 1
    assert btf.find("inner", Typedef, Int) is None
    assert btf.find("other") is None


def test_sizes_multiply_through_arrays() -> None:
    writer = BtfWriter()
    number = writer.integer("u16", 2)
    row = writer.add("array", "", 0, number, number, 3)
    table = writer.add("array", "", 0, row, number, 5)
    flexible = writer.add("array", "", 0, row, number, 0)
    pointers = writer.add("array", "", 0, writer.add("ptr", "", 0), number, 4)
    btf = parse_btf(writer.blob())

    sizes = [btf.size_of(each) for each in (number, row, table, flexible, pointers)]
    assert sizes == [2, 6, 30, 0, 32]


def test_typedefs_in_a_circle_are_refused() -> None:
    writer = BtfWriter()
    writer.add("typedef", "a", 2)
    writer.add("const", "", 1)
    btf = parse_btf(writer.blob(), "x.bpf.o")

    with pytest.raises(FormatError, match=r"BTF of x\.bpf\.o: the typedefs from type 1 on run in"):
        btf.resolve(1)


def test_arrays_of_themselves_are_refused() -> None:
    writer = BtfWriter()
    writer.add("array", "", 0, 1, 1, 2**32 - 1)

    with pytest.raises(FormatError, match="arrays from type 1 on are nested too deep"):
        parse_btf(writer.blob()).size_of(1)


@pytest.mark.parametrize("kind", ["func", "fwd", "func_proto"])
def test_what_has_no_size_says_so(kind: str) -> None:
    writer = BtfWriter()
    writer.add(kind, "it", 0)
    btf = parse_btf(writer.blob())

    with pytest.raises(FormatError, match=r"type 1 \(.*\) has no size"):
        btf.size_of(1)
    with pytest.raises(FormatError, match=r"type 0 \(void void\) has no size"):
        btf.size_of(0)
    with pytest.raises(FormatError, match="type id 2 is used, the last one is 1"):
        btf.resolve(2)


def blob(kind: str, name: str, size: int, *rest: int, count: int = 0) -> bytes:
    writer = BtfWriter()
    writer.integer("int", 4)
    writer.add(kind, name, size, *rest, count=count)
    return writer.blob()


GOOD = blob("ptr", "", 1)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "0 bytes are no header"),
        (b"\x9f\xeb\x01\x00\x18\0\0\0", "8 bytes are no header"),
        (b"\x7fELF" + bytes(20), "no magic 0xeb9f at offset 0x0"),
        (b"\x9f\xeb\x02" + GOOD[3:], "version 2"),
        (GOOD[:4] + b"\x10" + GOOD[5:], "a header of 16 bytes"),
        (GOOD[:-1], r"strings at offset 0x34 end at 0x39 of 0x38 \(cut short\?\)"),
        (GOOD[:12] + b"\x1b" + GOOD[13:], "types of 27 bytes are not whole words"),
        (blob("ptr", "", 1, 5), r"type 3 at offset 0x34: 3 words are wanted, 1 are left"),
        (blob("struct", "s", 4, count=1), r"type 2 at offset 0x28: 3 words are wanted, 0 are left"),
        (blob("int", "odd", 3, 24), "type 2 at offset 0x28: int odd has 24 bits from 0 on in 3"),
        (blob("int", "wide", 4, 33), "int wide has 33 bits from 0 on in 4 bytes"),
        (blob("int", "none", 4, 0), "int none has 0 bits"),
        (blob("float", "odd", 7), "float odd has 7 bytes"),
        (blob("enum", "odd", 3), "enum odd has 3 bytes"),
        (GOOD[:47] + b"\x14" + GOOD[48:], "type 2 at offset 0x28: kind 20 is unknown"),
        (GOOD[:40] + b"\xff" + GOOD[41:], "strings at offset 0x34: no string at 0xff of 0x5 bytes"),
    ],
)
def test_malformed_btf_is_refused_by_name_place_and_cause(data: bytes, cause: str) -> None:
    with pytest.raises(FormatError, match=rf"parse BTF of x\.bpf\.o: .*({cause})") as caught:
        parse_btf(data, "x.bpf.o")
    assert isinstance(caught.value, (ValueError, KernelTraceError))


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True)


@dataclass
class Expected:
    """Types as they are written, and what reading them must give."""

    writer: BtfWriter
    types: list[BtfType]


@st.composite
def written(draw: st.DrawFn) -> Expected:
    writer = BtfWriter(draw(st.booleans()))
    types: list[BtfType] = [Void()]
    for _ in range(draw(st.integers(0, 12))):
        before = st.integers(0, len(types) - 1)
        kind = draw(st.sampled_from(["int", "ptr", "array", "struct", "enum", "enum64", "typedef"]))
        name = draw(names)
        if kind == "int":
            size = draw(st.sampled_from([1, 2, 4, 8, 16]))
            signed = draw(st.booleans())
            writer.integer(name, size, int(signed))
            types.append(Int(name, size, 8 * size, signed, False, False))
        elif kind == "ptr":
            target = draw(before)
            writer.add("ptr", "", target)
            types.append(Pointer("", target))
        elif kind == "array":
            element, count = draw(before), draw(st.integers(0, 2**32 - 1))
            writer.add("array", "", 0, element, 0, count)
            types.append(Array("", element, 0, count))
        elif kind == "struct":
            rows = st.tuples(names, before, st.integers(0, 2**24 - 1), st.integers(0, 64))
            members = draw(st.lists(rows, max_size=6))
            union = draw(st.booleans())
            size = draw(st.integers(0, 2**32 - 1))
            writer.structure(name, size, members, kind="union" if union else "struct")
            types.append(Struct(name, size, tuple(Member(*row) for row in members), union))
        elif kind in ("enum", "enum64"):
            signed = draw(st.booleans())
            bits = 32 if kind == "enum" else 64
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
            values = draw(st.lists(st.tuples(names, st.integers(low, high - 1)), max_size=6))
            if kind == "enum":
                writer.enum(name, 4, values, signed)
            else:
                writer.enum64(name, values, signed)
            types.append(Enum(name, bits // 8, signed, tuple(values)))
        else:
            target = draw(before)
            writer.add("typedef", name, target)
            types.append(Typedef(name, target))
    return Expected(writer, types)


@given(written())
def test_what_was_written_is_read(expected: Expected) -> None:
    assert parse_btf(expected.writer.blob()) == Btf(
        "BTF", expected.writer.little, tuple(expected.types)
    )


@given(written(), st.data())
def test_what_was_cut_short_or_changed_is_refused_or_read(
    expected: Expected, data: st.DataObject
) -> None:
    blob = bytearray(expected.writer.blob())
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, 8 * len(blob) - 1))
        blob[place // 8] ^= 1 << place % 8
    del blob[data.draw(st.integers(0, len(blob))) :]

    try:
        btf = parse_btf(bytes(blob))
    except FormatError:
        return
    for type_id in range(len(btf.types)):
        try:
            assert btf.size_of(type_id) >= 0
        except FormatError:
            continue
