from __future__ import annotations

import sys

import pytest

from harness.bpf_source import compile_bpf, run_host_c
from harness.btf_encoder import BtfWriter
from harness.c_types import STRUCTS, TYPES, bpf_source, c_type
from kerneltrace_core.btf.format import parse_btf
from kerneltrace_core.btf.layout import (
    ArrayLayout,
    FieldLayout,
    ObjectLayout,
    Scalar,
    StructLayout,
    TypeLayout,
    c_name,
)
from kerneltrace_core.errors import FormatError

needs_clang = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="BPF objects are compiled on Linux"
)
BIT_FIELDS = {"bits", "packed_bits", "bits_between"}


def compiled() -> ObjectLayout:
    return ObjectLayout.from_elf(compile_bpf(bpf_source()), "types.bpf.o")


def field_of(struct: str, name: str) -> FieldLayout:
    (found,) = [each for each in compiled().structs[struct].fields() if each.name == name]
    return found


@needs_clang
@pytest.mark.parametrize("name", STRUCTS)
def test_the_fields_are_those_of_the_source_in_its_order(name: str) -> None:
    assert [field.name for field in compiled().structs[name].fields()] == STRUCTS[name].split()


@needs_clang
def test_sizes_and_offsets_are_those_of_this_machines_compiler() -> None:
    rows = []
    for name in STRUCTS:
        rows.append(f'printf("{name} %zu\\n", sizeof({c_type(name)}));')
        for field in compiled().structs[name].fields():
            if not field.bit_size:
                place = f"__builtin_offsetof({c_type(name)}, {field.name})"
                size = f"sizeof((({c_type(name)} *)0)->{field.name})"
                flexible = isinstance(field.type, ArrayLayout) and not field.type.count
                rows.append(
                    f'printf("{name}.{field.name} %zu %zu\\n", {place}, '
                    f"{'(unsigned long)0' if flexible else size});"
                )
    source = f"#include <stdio.h>\n{TYPES}\nint main(void) {{ {' '.join(rows)} return 0; }}"

    ours = []
    for name in STRUCTS:
        layout = compiled().structs[name]
        ours.append(f"{name} {layout.size}")
        ours += [
            f"{name}.{field.name} {field.offset} {field.type.size}"
            for field in layout.fields()
            if not field.bit_size
        ]
    assert ours == run_host_c(source).decode().splitlines()
    assert len(ours) == 86


def number(record: bytes, field: FieldLayout) -> int:
    """Read an integer as the documentation of FieldLayout says."""
    assert isinstance(field.type, Scalar)
    bits = field.bit_size or 8 * field.type.size
    raw = record[field.offset : field.offset + (field.bit_offset + bits + 7) // 8]
    assert 8 * len(raw) >= field.bit_offset + bits, "it is outside of the struct"
    order = "big" if field.type.big_endian or sys.byteorder == "big" else "little"
    value = int.from_bytes(raw, order)  # type: ignore[arg-type,unused-ignore]
    left = 8 * len(raw) - field.bit_offset - bits
    value = value >> (field.bit_offset if sys.byteorder == "little" else left) & (1 << bits) - 1
    return value - (1 << bits) if field.type.signed and value >> (bits - 1) else value


@needs_clang
@pytest.mark.parametrize("name", sorted(BIT_FIELDS))
def test_a_bit_field_is_where_this_machines_compiler_writes_it(name: str) -> None:
    layout = compiled().structs[name]
    fields = layout.fields()
    # Each field alone has all of its bits, then a pattern; every other one stays 0.
    rows = [
        f"memset(&it, 0, sizeof it); it.{field.name} = {value}; fwrite(&it, sizeof it, 1, stdout);"
        for field in fields
        for value in ("-1", "0x5aa5a55a5aa5a55a")
    ]
    source = (
        f"#include <stdio.h>\n#include <string.h>\n{TYPES}\n"
        f"int main(void) {{ {c_type(name)} it; {' '.join(rows)} return 0; }}"
    )
    written = run_host_c(source)

    assert len(written) == layout.size * len(rows)
    records = iter(
        written[start : start + layout.size] for start in range(0, len(written), layout.size)
    )
    for field in fields:
        assert isinstance(field.type, Scalar)
        bits = field.bit_size or 8 * field.type.size
        for pattern in (-1, 0x5AA5A55A5AA5A55A):
            record = next(records)
            expected = pattern & (1 << bits) - 1
            if field.type.kind == "bool":
                expected = 1
            if field.type.signed and expected >> (bits - 1):
                expected -= 1 << bits
            values = {each.name: number(record, each) for each in fields}
            assert values == {each.name: 0 for each in fields} | {field.name: expected}


@needs_clang
def test_a_bit_field_lies_in_its_storage_unit_and_in_the_struct_when_packed() -> None:
    def place(struct: str, name: str) -> tuple[int, int, int]:
        field = field_of(struct, name)
        return field.offset, field.bit_offset, field.bit_size

    assert place("bits", "a") == (0, 0, 3)
    assert place("bits", "b") == (0, 3, 5)
    assert place("bits", "c") == (0, 8, 20)
    assert place("bits", "d") == (4, 0, 6)
    assert place("bits", "e") == (8, 0, 40)
    assert place("packed_bits", "a") == (0, 0, 7)
    assert place("packed_bits", "b") == (0, 7, 60)  # in nine bytes
    assert place("packed_bits", "e") == (13, 6, 2)  # the last two bits of 14 bytes
    assert place("bits_between", "b") == (4, 12, 20)


U8, U32 = Scalar(1, False, "int", name="__u8"), Scalar(4, False, "int", name="__u32")
CHAR = Scalar(1, True, "char", name="char")
POINT = StructLayout(
    "point",
    4,
    (
        FieldLayout("x", 0, Scalar(2, True, "int", name="__s16")),
        FieldLayout("y", 2, Scalar(2, True, "int", name="__s16")),
    ),
)


@needs_clang
@pytest.mark.parametrize(
    ("struct", "field", "expected"),
    [
        ("scalars", "letter", CHAR),
        ("scalars", "s8", Scalar(1, True, "int", name="signed char")),
        ("scalars", "u8", Scalar(1, False, "int", name="unsigned char")),
        ("scalars", "u64", Scalar(8, False, "int", name="__u64")),
        ("scalars", "flag", Scalar(1, False, "bool", name="flag_t")),
        ("scalars", "word", Scalar(8, True, "int", name="long")),
        ("scalars", "any", Scalar(8, False, "pointer", name="void *")),
        ("scalars", "to", Scalar(8, False, "pointer", name="struct point *")),
        ("scalars", "names", Scalar(8, False, "pointer", name="char **")),
        ("scalars", "huge", Scalar(16, True, "int", name="__int128")),
        (
            "scalars",
            "color",
            Scalar(4, True, "enum", name="color", values=(("RED", -1), ("GREEN", 0), ("BLUE", 7))),
        ),
        (
            "scalars",
            "level",
            Scalar(4, False, "enum", name="level", values=(("LOW", 1), ("HIGH", 3_000_000_000))),
        ),
        (
            "scalars",
            "tiny",
            Scalar(1, True, "enum", name="tiny", values=(("TINY_NONE", -2), ("TINY_ONE", 1))),
        ),
        ("addresses", "port", Scalar(2, False, "int", True, "__be16")),
        ("addresses", "v4", Scalar(4, False, "int", True, "address_t")),
        ("addresses", "wide", Scalar(8, False, "int", True, "__be64")),
        ("addresses", "short_", Scalar(2, False, "int", True, "be16")),
        ("addresses", "many", ArrayLayout(Scalar(4, False, "int", True, "__be32"), 4)),
        ("addresses", "fixed", Scalar(4, False, "int", True, "address_t")),
        ("arrays", "comm", ArrayLayout(CHAR, 16)),
        ("arrays", "name", ArrayLayout(CHAR, 16)),
        ("arrays", "raw", ArrayLayout(U8, 6)),
        ("arrays", "grid", ArrayLayout(ArrayLayout(Scalar(4, True, "int", name="__s32"), 5), 3)),
        ("arrays", "path", ArrayLayout(POINT, 4)),
        (
            "nested",
            "task",
            StructLayout("task_id_t", 8, (FieldLayout("pid", 0, U32), FieldLayout("tid", 4, U32))),
        ),
        (
            "nested",
            "either",
            StructLayout(
                "",
                4,
                (FieldLayout("number", 0, U32), FieldLayout("bytes", 0, ArrayLayout(U8, 4))),
                True,
            ),
        ),
        ("flexible", "values", ArrayLayout(Scalar(2, False, "int", name="__u16"), 0)),
        ("flexible_structs", "path", ArrayLayout(POINT, 0)),
    ],
)
def test_a_type_says_its_size_sign_kind_byte_order_and_name(
    struct: str, field: str, expected: TypeLayout
) -> None:
    assert field_of(struct, field).type == expected


@needs_clang
def test_members_of_anonymous_structs_and_unions_are_flattened_only_by_fields() -> None:
    layout = compiled().structs["anonymous"]

    assert [member.name for member in layout.members] == ["kind", "", "last"]
    places = {field.name: field.offset for field in layout.fields()}
    assert places == {
        "kind": 0, "v4": 8, "port": 12, "v6": 8, "deep": 8, "low": 8, "high": 12, "last": 24,
    }  # fmt: skip


@needs_clang
def test_structs_are_those_with_a_name_or_a_typedef() -> None:
    structs = compiled().structs

    assert set(STRUCTS) == set(structs)
    assert structs["both"].is_union
    assert "color" not in structs
    assert structs.get("other") is None
    assert structs["nested"] is structs["nested"]


def test_types_are_called_as_in_c() -> None:
    grid = ArrayLayout(ArrayLayout(U32, 5), 3)

    shown = [c_name(each) for each in (U32, grid, ArrayLayout(CHAR, 0), POINT)]
    assert shown == ["__u32", "__u32[3][5]", "char[]", "struct point"]
    assert c_name(StructLayout("", 4, (), True)) == "union (anonymous)"
    assert grid.size == 60


def of_writer(writer: BtfWriter) -> ObjectLayout:
    return ObjectLayout.from_btf(parse_btf(writer.blob(), "x.bpf.o"))


def test_bit_fields_of_the_kind_before_the_flag_are_ints_of_fewer_bits() -> None:
    writer = BtfWriter()
    five = writer.integer("unsigned int", 4, bits=5)
    three = writer.integer("unsigned int", 4, bits=3, offset=1)
    writer.structure("old", 4, [("a", five, 0, 0), ("b", three, 5, 0)], flag=0)

    a, b = of_writer(writer).structs["old"].fields()

    assert (a.offset, a.bit_offset, a.bit_size) == (0, 0, 5)
    assert (b.offset, b.bit_offset, b.bit_size) == (0, 6, 3)


def test_an_enum_of_64_bits_has_its_values() -> None:
    writer = BtfWriter()
    wide = writer.enum64("wide", [("LOW", -1), ("HIGH", 2**40)], signed=True)
    top = writer.enum64("top", [("TOP", 2**63)], signed=False)
    writer.structure("s", 16, [("a", wide, 0, 0), ("b", top, 64, 0)])

    a, b = of_writer(writer).structs["s"].fields()

    assert a.type == Scalar(8, True, "enum", name="wide", values=(("LOW", -1), ("HIGH", 2**40)))
    assert b.type == Scalar(8, False, "enum", name="top", values=(("TOP", 2**63),))


def test_an_enum_whose_wide_values_were_cut_has_none() -> None:
    writer = BtfWriter()
    wide = writer.enum("wide", 8, [("LOW", 1), ("HIGH", 0)], signed=False)
    writer.structure("s", 8, [("a", wide, 0, 0)])

    assert of_writer(writer).structs["s"].members[0].type == Scalar(8, False, "enum", name="wide")


def test_where_enums_carry_their_sign_a_big_number_stays_one() -> None:
    writer = BtfWriter()
    color = writer.enum("color", 4, [("RED", -1)], signed=True)
    mask = writer.enum("mask", 4, [("ALL", 0xFFFFFFFF)], signed=False)
    writer.structure("s", 8, [("a", color, 0, 0), ("b", mask, 32, 0)])

    a, b = of_writer(writer).structs["s"].fields()

    assert a.type == Scalar(4, True, "enum", name="color", values=(("RED", -1),))
    assert b.type == Scalar(4, False, "enum", name="mask", values=(("ALL", 0xFFFFFFFF),))


def broken(kind: str) -> BtfWriter:
    writer = BtfWriter()
    number = writer.integer("int", 4, 1)
    if kind == "itself":
        writer.structure("s", 8, [("a", 2, 0, 0)])
    elif kind == "outside":
        writer.structure("s", 4, [("a", number, 8, 0)])
    elif kind == "within a byte":
        writer.structure("s", 8, [("a", number, 4, 0)])
    elif kind == "bits of void":
        writer.structure("s", 8, [("a", 3, 0, 4)])
        writer.structure("t", 4, [])
    elif kind == "too many bits":
        writer.structure("s", 8, [("a", number, 0, 33)])
    elif kind == "function":
        writer.structure("s", 8, [("a", 3, 0, 0)])
        writer.add("func_proto", "", 0)
    elif kind == "deep":
        for inner in range(1, 70):
            writer.structure(f"s{inner}", 4, [("", inner, 0, 0)])
        writer.structure("s", 4, [("", 70, 0, 0)])
    elif kind == "wide":
        inner = writer.structure("s0", 4, [("a", number, 0, 0)] * 2)
        for level in range(13):
            inner = writer.structure(f"s{level}", 4, [("", inner, 0, 0)] * 2, kind="union")
        writer.structure("s", 4, [("", inner, 0, 0)])
    return writer


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("itself", "type 2 contains itself, or is nested too deep"),
        ("outside", r"member a of struct s ends at bit 40, the struct at bit 32"),
        ("within a byte", "member a of struct s begins within a byte, at bit 4"),
        ("bits of void", "bit field a of struct s has 4 bits of a type that has fewer"),
        ("too many bits", "bit field a of struct s has 33 bits of a type that has fewer"),
        ("function", r"type 3 \(functionproto \) has no layout"),
        ("deep", "nested"),
        ("wide", "has more than 8192 fields"),
    ],
)
def test_a_struct_that_cannot_be_is_refused(kind: str, cause: str) -> None:
    structs = of_writer(broken(kind)).structs

    with pytest.raises(FormatError, match=rf"read BTF of x\.bpf\.o: .*{cause}"):
        structs["s"]


def test_what_is_nested_too_deep_is_refused_from_the_inside_too() -> None:
    structs = of_writer(broken("deep")).structs

    # Each is only one level above what was made before it.
    made = [structs[f"s{inner}"] for inner in range(1, 64)]

    assert made[-1].members[0].type == made[-2]
    with pytest.raises(FormatError, match="type 65 is nested more than 64 levels deep"):
        structs["s64"]
