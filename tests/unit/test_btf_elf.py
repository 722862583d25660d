from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.btf_encoder import ElfSection, ElfSymbol, write_elf
from kerneltrace_core.btf.elf import Elf
from kerneltrace_core.btf.strings import Strings
from kerneltrace_core.errors import FormatError

CODE = 4

every_kind_of_file = pytest.mark.parametrize("bits", [32, 64])
every_byte_order = pytest.mark.parametrize("little", [True, False], ids=["little", "big"])


@every_kind_of_file
@every_byte_order
def test_sections_and_symbols_are_read_in_every_width_and_byte_order(
    bits: int, little: bool
) -> None:
    data = write_elf(
        [ElfSection("tp/x", b"12345678", flags=CODE), ElfSection(".bss", bytes(64), type=8)],
        [ElfSymbol("first", 0, 8), ElfSymbol("count", 16, 4, kind=1, binding=0, section=2)],
        bits=bits,
        little=little,
        machine=247,
    )

    elf = Elf.parse(data)

    assert (elf.bits, elf.little, elf.machine, elf.type) == (bits, little, 247, 1)
    names = [section.name for section in elf.sections]
    assert names == ["", "tp/x", ".bss", ".symtab", ".strtab", ".shstrtab"]
    code, bss = elf.section("tp/x"), elf.section(".bss")
    assert code is not None
    assert bss is not None
    assert (code.data, code.executable) == (b"12345678", True)
    assert (bss.data, bss.size, bss.executable) == (b"", 64, False)
    assert elf.section(".text") is None
    first, count = elf.symbols()
    assert (first.name, first.size, first.is_function, first.is_local) == ("first", 8, True, False)
    assert (count.name, count.value, count.section_index) == ("count", 16, 2)
    assert (count.is_function, count.is_local) == (False, True)


@every_kind_of_file
@every_byte_order
def test_an_address_is_found_in_the_file_through_the_loaded_segments(
    bits: int, little: bool
) -> None:
    segments = [(4, 0, 0x1000, 0x100, 0x100, 4), (1, 0x40, 0x1000, 0x20, 0x80, 5)]
    elf = Elf.parse(write_elf([], segments=segments, bits=bits, little=little), "lib.so")

    assert [segment.type for segment in elf.segments] == [4, 1]
    assert (elf.segments[1].memsz, elf.segments[1].flags) == (0x80, 5)
    assert elf.file_offset(0x1000) == 0x40
    assert elf.file_offset(0x101F) == 0x5F
    with pytest.raises(FormatError, match=r"find address 0x1020 in lib\.so: no loaded segment"):
        elf.file_offset(0x1020)


def test_more_sections_than_the_header_can_count_are_counted_by_the_first() -> None:
    data = bytearray(write_elf([ElfSection("tp/x", b"code")]))
    (table,) = struct.unpack_from("<Q", data, 40)
    count, names = struct.unpack_from("<HH", data, 60)
    struct.pack_into("<HH", data, 60, 0, 0xFFFF)
    struct.pack_into("<Q", data, table + 32, count)  # sh_size of section 0
    struct.pack_into("<I", data, table + 40, names)  # sh_link

    elf = Elf.parse(bytes(data))

    assert [section.name for section in elf.sections][:2] == ["", "tp/x"]
    assert len(elf.sections) == count


def test_a_file_without_sections_has_none() -> None:
    data = bytearray(write_elf([]))
    struct.pack_into("<Q", data, 40, 0)

    elf = Elf.parse(bytes(data))

    assert elf.sections == ()
    assert elf.symbols() == ()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another kind of executable")
def test_the_running_interpreter_is_read() -> None:
    elf = Elf.parse(Path(sys.executable).resolve().read_bytes(), "python")

    dynamic = {symbol.name for symbol in elf.symbols() if symbol.is_function}
    assert {"Py_BytesMain", "__libc_start_main"} & dynamic
    text = elf.section(".text")
    assert text is not None
    assert elf.file_offset(text.address) == text.offset


def malformed(offset: int, layout: str, *values: int) -> bytes:
    data = bytearray(write_elf([ElfSection("tp/x", b"12345678")], [ElfSymbol("first")]))
    struct.pack_into(layout, data, offset, *values)
    return bytes(data)


WHOLE = write_elf([ElfSection("tp/x", b"12345678")], [ElfSymbol("first")])
(TABLE,) = struct.unpack_from("<Q", WHOLE, 40)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", r"not an ELF file \(0 bytes"),
        (b"MZ" + bytes(100), "no magic at 0x0"),
        (malformed(4, "B", 3), "class 3 and byte order 1 at offset 0x4"),
        (malformed(5, "B", 0), "class 2 and byte order 0 at offset 0x4"),
        (WHOLE[:63], "ends at 0x3f, within the ELF header"),
        (WHOLE[:-1], rf"5 section headers at offset 0x{TABLE:x} .* \(cut short\?\)"),
        (malformed(40, "<Q", 2**63), "section headers at offset 0x8000000000000000"),
        (malformed(58, "<H", 63), "section headers of 63 bytes instead of 64"),
        (malformed(62, "<H", 5), "section 5 of 5 should hold the names"),
        (malformed(TABLE + 64 + 32, "<Q", 2**60), r"section 1 \(tp/x\) at offset 0x40 ends at"),
        (malformed(TABLE + 64, "<I", 9999), "section names at offset .*: no string at 0x270f"),
        (malformed(32, "<QQIHHH", 64, TABLE, 0, 64, 56, 999), "999 segment headers at offset 0x40"),
        (malformed(32, "<QQIHHH", 64, TABLE, 0, 64, 57, 1), "segment headers of 57 bytes instead"),
    ],
)
def test_a_malformed_file_is_refused_by_name_place_and_cause(data: bytes, cause: str) -> None:
    with pytest.raises(FormatError, match=rf"parse x\.bpf\.o: .*({cause})"):
        Elf.parse(data, "x.bpf.o")


@pytest.mark.parametrize(
    ("offset", "layout", "value", "cause"),
    [
        (TABLE + 2 * 64 + 32, "<Q", 47, "47 bytes are no whole symbols of 24 bytes"),
        (TABLE + 2 * 64 + 40, "<I", 77, "its names are in section 77, which is not there"),
    ],
)
def test_a_malformed_symbol_table_is_refused(
    offset: int, layout: str, value: int, cause: str
) -> None:
    elf = Elf.parse(malformed(offset, layout, value), "x.bpf.o")
    with pytest.raises(FormatError, match=rf"section \.symtab at offset 0x48: {cause}"):
        elf.symbols()


def test_names_that_overlap_without_measure_are_refused() -> None:
    table = b"\0" + b"a" * 100_000 + b"\0"
    strings = Strings(table, "names")

    def read_all() -> None:
        for offset in range(1, 100_000):
            strings.at(offset)

    with pytest.raises(FormatError, match="names: its strings overlap too often"):
        read_all()


@given(st.binary(max_size=200))
def test_no_bytes_after_the_magic_do_more_than_raise(tail: bytes) -> None:
    for head in (
        b"",
        b"\x7fELF",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        b"\x7fELF\x01\x02" + bytes(10),
    ):
        try:
            Elf.parse(head + tail).symbols()
        except FormatError:
            continue
