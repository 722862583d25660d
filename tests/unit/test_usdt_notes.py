"""Static tracepoints out of ELF notes: offsets, semaphores, arguments; nonsense is refused."""

from __future__ import annotations

import random
import struct

import pytest

from kerneltrace_core.btf.elf import Elf
from kerneltrace_core.errors import FormatError, UnsupportedError
from kerneltrace_core.session.usdt_notes import (
    StaticTracepoint,
    UsdtArgument,
    parse_argument,
    parse_notes,
    split_arguments,
)
from kerneltrace_core.session.usdt_spec import SPEC_SIZES, encode_spec, register_offset

pytestmark = pytest.mark.unit


def note(
    place: int, base: int, semaphore: int, texts: bytes, owner: bytes = b"stapsdt\0", kind: int = 3
) -> bytes:
    content = struct.pack("<QQQ", place, base, semaphore) + texts
    padding = bytes(-len(content) % 4)
    return struct.pack("<III", len(owner), len(content), kind) + owner + content + padding


def elf(notes: bytes, base_address: int = 0x5000) -> bytes:
    """Build an ELF64 file: one segment that brings 0x1000..0x8000 from offset 0x100, the notes."""
    names = b"\0.note.stapsdt\0.stapsdt.base\0.shstrtab\0"
    at_program, at_notes = 64, 64 + 56
    at_names = at_notes + len(notes)
    at_sections = -(-(at_names + len(names)) // 8) * 8
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, at_program, at_sections, 0, 64, 56, 1, 64, 4, 3
    )  # fmt: skip
    program = struct.pack("<IIQQQQQQ", 1, 5, 0x100, 0x1000, 0x1000, 0x7000, 0x7000, 0x1000)

    def section(name: bytes, kind: int, address: int, offset: int, size: int) -> bytes:
        where = names.index(name + b"\0")
        return struct.pack("<IIQQQQIIQQ", where, kind, 0, address, offset, size, 0, 0, 1, 0)

    sections = bytes(64)
    sections += section(b".note.stapsdt", 7, 0, at_notes, len(notes))
    sections += section(b".stapsdt.base", 1, base_address, at_notes, 1 if base_address else 0)
    sections += section(b".shstrtab", 3, 0, at_names, len(names))
    body = header + program + notes + names
    return body + bytes(at_sections - len(body)) + sections


def test_places_and_semaphores_become_file_offsets() -> None:
    data = elf(
        note(0x1234, 0x5000, 0x2000, b"python\0gc__start\0-4@112(%rsp)\0")
        + note(0x1240, 0x5000, 0, b"python\0gc__done\0\0")
    )
    assert parse_notes(data) == (
        StaticTracepoint("python", "gc__start", 0x334, 0x1100, "-4@112(%rsp)"),
        StaticTracepoint("python", "gc__done", 0x340, 0, ""),
    )


def test_what_a_linker_moved_is_moved_with_the_base() -> None:
    data = elf(note(0x1234, 0x4F00, 0x2000, b"a\0b\0\0"))
    assert parse_notes(data) == (StaticTracepoint("a", "b", 0x434, 0x1200, ""),)


def test_notes_of_others_are_passed_over() -> None:
    data = elf(
        note(0, 0, 0, b"a\0b\0\0", owner=b"GNU\0")
        + note(0, 0, 0, b"a\0b\0\0", kind=4)
        + note(0x1234, 0x5000, 0, b"a\0b\0\0")
    )
    assert len(parse_notes(data)) == 1


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        (note(0x1234, 0x5000, 0, b"a\0b\0\0")[:-4], "ends behind the section"),
        (struct.pack("<III", 8, 8, 3) + b"stapsdt\0" + bytes(8), "is cut short"),
        (note(0x1234, 0x5000, 0, b"a\0"), "has no names"),
        (note(0x99999, 0x5000, 0, b"a\0b\0\0"), "no loaded segment"),
    ],
)
def test_malformed_notes_are_refused(notes: bytes, told: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_notes(elf(notes))
    assert told in str(caught.value)


def test_ten_thousand_damaged_files_end_in_a_format_error_or_a_value() -> None:
    chance = random.Random(23)
    whole = elf(
        note(0x1234, 0x5000, 0x2000, b"python\0gc__start\0-4@112(%rsp)\0")
        + note(0x1240, 0x5000, 0, b"python\0gc__done\0\0")
    )
    assert Elf.parse(whole).machine == 62
    outcomes = {"error": 0, "value": 0}
    for _ in range(10_000):
        damaged = bytearray(whole[: chance.choice((len(whole), chance.randrange(len(whole))))])
        for _ in range(chance.randrange(4)):
            if damaged:
                damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        try:
            parse_notes(bytes(damaged))
            outcomes["value"] += 1
        except FormatError:
            outcomes["error"] += 1
    assert min(outcomes.values()) > 500


ARGUMENTS = {
    "-4@112(%rsp)": UsdtArgument(4, True, "rsp", 112, True),
    "8@-8(%rbp)": UsdtArgument(8, False, "rbp", -8, True),
    "8@(%rax)": UsdtArgument(8, False, "rax", 0, True),
    "-8@%r12": UsdtArgument(8, True, "r12", 0, False),
    "1@%al": UsdtArgument(1, False, "al", 0, False),
    "-4@$-9": UsdtArgument(4, True, None, -9, False),
    "4@$0x10": UsdtArgument(4, False, None, 16, False),
    "8@x0": UsdtArgument(8, False, "x0", 0, False),
    "-4@[sp, 60]": UsdtArgument(4, True, "sp", 60, True),
    "8@[x19]": UsdtArgument(8, False, "x19", 0, True),
    "-4@5": UsdtArgument(4, True, None, 5, False),
    "8@8(%rax,%rbx,4)": UsdtArgument(8, False, "rax", 8, True, "rbx", 4),
    "-1@-96(%rbp,%rax)": UsdtArgument(1, True, "rbp", -96, True, "rax", 1),
}


@pytest.mark.parametrize("text", ARGUMENTS)
def test_an_argument_says_where_it_is(text: str) -> None:
    assert parse_argument(text) == ARGUMENTS[text]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("8f@%xmm0", "a floating point number"),
        ("-4f@8(%rsp)", "a floating point number"),
        ("-4@(,%rax,4)", "at an index alone"),
        ("8@(%rdi,%rax,3)", "neither a constant"),
        ("8@(%rdi,%rax,)", "neither a constant"),
        ("8@global(%rip)", "at a symbol"),
        ("8@global+4(%rip)", "at a symbol"),
        ("16@%rax", "neither a constant"),
        ("", "neither a constant"),
        ("8@", "neither a constant"),
        ("8@$x", "neither a constant"),
    ],
)
def test_an_argument_that_bpf_cannot_read_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_argument(text)
    assert str(refused.value).startswith(f"parse USDT argument {text}: ")
    assert why in str(refused.value)


def test_arguments_are_parted_where_they_end() -> None:
    assert split_arguments("-4@112(%rsp) 8@%rax -4@[sp, 60] 8f@%xmm0") == [
        "-4@112(%rsp)", "8@%rax", "-4@[sp, 60]", "8f@%xmm0",
    ]  # fmt: skip
    assert split_arguments("") == []


def test_a_spec_is_what_usdt_bpf_h_reads() -> None:
    encoded = encode_spec("-4@112(%rsp) 8@%rax -4@$-9", "x86_64")

    assert len(encoded) == SPEC_SIZES[0] == 208
    arguments = list(struct.iter_unpack("=QIhBb", encoded[:192]))
    assert arguments[:3] == [
        (112, 2, 152, 1, 32),
        (0, 1, 80, 0, 0),
        ((1 << 64) - 9, 0, 0, 1, 32),
    ]
    assert arguments[3:] == [(0, 0, 0, 0, 0)] * 9
    assert struct.unpack("=Qh6x", encoded[192:]) == (0, 3)


def test_a_spec_of_libbpf_1_7_has_room_for_an_index() -> None:
    encoded = encode_spec("-4@112(%rsp) 2@-8(%rax,%rcx,4) -4@$-9", "x86_64", SPEC_SIZES[1])

    assert len(encoded) == SPEC_SIZES[1] == 304
    arguments = list(struct.iter_unpack("=QBxHxxhBb6x", encoded[:288]))
    assert arguments[:3] == [
        (112, 2, 0, 152, 1, 32),
        ((1 << 64) - 8, 3, 88 | 2 << 12, 80, 0, 48),
        ((1 << 64) - 9, 0, 0, 0, 1, 32),
    ]
    assert arguments[3:] == [(0, 0, 0, 0, 0, 0)] * 9
    assert struct.unpack("=Qh6x", encoded[288:]) == (0, 3)


@pytest.mark.parametrize(
    "argument",
    ["8@(%eax,%ecx,8)", "8@(%rax,%ecx)", "8@(%rax,%rsp,8)", "8@(%rip,%rax,8)", "8@(%rax,%cl,8)"],
)
def test_an_address_that_wraps_around_at_32_bits_is_refused(argument: str) -> None:
    with pytest.raises(FormatError, match="not the registers of an address of 64 bits"):
        encode_spec(argument, "x86_64", SPEC_SIZES[1])


def test_an_index_needs_an_object_that_adds_it() -> None:
    with pytest.raises(UnsupportedError, match=r"from libbpf 1\.7 on"):
        encode_spec("8@(%rax,%rcx,8)", "x86_64")
    with pytest.raises(UnsupportedError, match=r"a spec of 200 bytes is not known"):
        encode_spec("", "x86_64", 200)


def test_registers_are_where_the_kernel_keeps_them() -> None:
    # arch/x86/include/uapi/asm/ptrace.h, arch/arm64/include/uapi/asm/ptrace.h
    assert [register_offset(name, "x86_64") for name in ("r15", "rip", "rsp", "edi", "cl")] == [
        0, 128, 152, 112, 88,
    ]  # fmt: skip
    assert [register_offset(name, "aarch64") for name in ("x0", "w7", "x30", "sp")] == [
        0, 56, 240, 248,
    ]  # fmt: skip
    with pytest.raises(FormatError, match="no register xmm0"):
        register_offset("xmm0", "x86_64")
    with pytest.raises(FormatError, match="no register x31"):
        register_offset("x31", "aarch64")
    with pytest.raises(UnsupportedError, match="registers of s390x"):
        register_offset("r2", "s390x")


def test_thirteen_arguments_are_one_too_many() -> None:
    with pytest.raises(FormatError, match="13, bpf_usdt_arg"):
        encode_spec(" ".join(["8@%rax"] * 13), "x86_64")
