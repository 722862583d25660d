"""ELF files: sections, segments and symbols of 32- and 64-bit files in either byte order."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from kerneltrace_core.btf.strings import Strings
from kerneltrace_core.errors import FormatError

__all__ = ["Elf", "Section", "Segment", "Symbol"]

# The numbers are those of elf(5).
MAGIC = b"\x7fELF"
SECTION_NULL, SECTION_SYMTAB, SECTION_NOBITS, SECTION_DYNSYM = 0, 2, 8, 11
SEGMENT_LOAD = 1
# Counts that do not fit the header are in section 0.
INDEX_ELSEWHERE = COUNT_ELSEWHERE = 0xFFFF
FLAG_EXECUTABLE = 0x4
SYMBOL_FUNCTION = 2
BINDING_LOCAL = 0

HEADER = {32: "HHIIIIIHHHHHH", 64: "HHIQQQIHHHHHH"}
SECTION = {32: "IIIIIIIIII", 64: "IIQQQQIIQQ"}
SEGMENT = {32: "IIIIIIII", 64: "IIQQQQQQ"}
SYMBOL = {32: "IIIBBH", 64: "IBBHQQ"}


@dataclass(frozen=True)
class Section:
    """A section; ``offset`` and ``size`` in bytes. Immutable. ``data`` copies out of the file."""

    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    file: bytes = field(repr=False, compare=False)

    @property
    def data(self) -> bytes:
        """Return the bytes; none of a section that takes no room in the file (``.bss``)."""
        if self.type == SECTION_NOBITS:
            return b""
        return self.file[self.offset : self.offset + self.size]

    @property
    def executable(self) -> bool:
        """Tell whether it holds code."""
        return bool(self.flags & FLAG_EXECUTABLE)


@dataclass(frozen=True)
class Segment:
    """A program header; all but ``type`` and ``flags`` in bytes. Immutable."""

    type: int
    offset: int
    vaddr: int
    filesz: int
    memsz: int
    flags: int


@dataclass(frozen=True)
class Symbol:
    """A symbol; ``kind`` 2: function, 1: object; ``binding`` 0: local. Immutable.

    ``section_index`` beyond the sections (0xfff1: absolute) stands for none.
    """

    name: str
    value: int
    size: int
    kind: int
    binding: int
    section_index: int

    @property
    def is_function(self) -> bool:
        """Tell whether it names code."""
        return self.kind == SYMBOL_FUNCTION

    @property
    def is_local(self) -> bool:
        """Tell whether only its own file sees it."""
        return self.binding == BINDING_LOCAL


@dataclass(frozen=True)
class Elf:
    """A parsed file. Immutable. ``type`` is e_type, ``bits`` 32 or 64; ``sections[0]`` is null."""

    file: str
    type: int
    machine: int
    little: bool
    bits: int
    sections: tuple[Section, ...] = field(repr=False)
    segments: tuple[Segment, ...] = field(repr=False)

    @classmethod
    def parse(cls, data: bytes, file: str = "ELF file") -> Elf:
        """Parse the headers; ``file`` is what errors call it. Pure.

        Raises FormatError on whatever is malformed, names the section and its offset.
        """
        return _Parser(data, file).parse()

    def section(self, name: str) -> Section | None:
        """Return the first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def symbols(self) -> tuple[Symbol, ...]:
        """Return what .symtab and .dynsym list, in file order, without the null symbols.

        Raises FormatError.
        """
        found: list[Symbol] = []
        for section in self.sections:
            if section.type in (SECTION_SYMTAB, SECTION_DYNSYM):
                found.extend(self.symbols_of(section))
        return tuple(found)

    def symbols_of(self, table: Section) -> list[Symbol]:
        """Return what one table lists, .symtab or .dynsym; the first has index 1.

        Raises FormatError.
        """
        where = f"parse {self.file}: section {table.name} at offset 0x{table.offset:x}"
        layout = struct.Struct(("<" if self.little else ">") + SYMBOL[self.bits])
        if table.size % layout.size:
            raise FormatError(
                f"{where}: {table.size} bytes are no whole symbols of {layout.size} bytes"
            )
        if not 0 < table.link < len(self.sections):
            raise FormatError(f"{where}: its names are in section {table.link}, which is not there")
        names = Strings(self.sections[table.link].data, f"{where}, names")
        found = []
        for position, entry in enumerate(layout.iter_unpack(table.data)):
            if position == 0:
                continue  # index 0 stands for no symbol
            if self.bits == 64:
                name, info, _, index, value, size = entry
            else:
                name, value, size, info, _, index = entry
            found.append(Symbol(names.at(name), value, size, info & 0xF, info >> 4, index))
        return found

    def file_offset(self, address: int) -> int:
        """Return where in the file the byte is that is loaded at ``address``.

        Raises FormatError when no loaded segment brings it from the file.
        """
        for segment in self.segments:
            if segment.type == SEGMENT_LOAD and 0 <= address - segment.vaddr < segment.filesz:
                return address - segment.vaddr + segment.offset
        raise FormatError(
            f"find address 0x{address:x} in {self.file}: no loaded segment of the file has it"
        )


class _Parser:
    """Read the header, then the two tables that it points at."""

    def __init__(self, data: bytes, file: str) -> None:
        self._data = data
        self._file = file
        if len(data) < 16 or data[:4] != MAGIC:
            raise FormatError(f"parse {file}: not an ELF file ({len(data)} bytes, no magic at 0x0)")
        if data[4] not in (1, 2) or data[5] not in (1, 2):
            raise FormatError(
                f"parse {file}: class {data[4]} and byte order {data[5]} at offset 0x4 are unknown"
            )
        self._bits = 32 * data[4]
        self._little = data[5] == 1

    def _layout(self, formats: dict[int, str]) -> struct.Struct:
        return struct.Struct(("<" if self._little else ">") + formats[self._bits])

    def _error(self, cause: str) -> FormatError:
        return FormatError(f"parse {self._file}: {cause}")

    def parse(self) -> Elf:
        layout = self._layout(HEADER)
        if len(self._data) < 16 + layout.size:
            raise self._error(f"the file ends at 0x{len(self._data):x}, within the ELF header")
        (kind, machine, _, _, segments_at, sections_at, _, _,
         segment_size, segments, section_size, sections, names) = layout.unpack_from(
            self._data, 16
        )  # fmt: skip
        found: tuple[Section, ...] = ()
        if sections_at:
            first = self._table("section", SECTION, sections_at, section_size, 1)[0]
            # gabi: what does not fit the header's half words is in section 0.
            sections = sections or first[5]
            names = first[6] if names == INDEX_ELSEWHERE else names
            segments = first[7] if segments == COUNT_ELSEWHERE else segments
            rows = self._table("section", SECTION, sections_at, section_size, sections)
            found = self._sections(rows, names)
        loaded: tuple[Segment, ...] = ()
        if segments_at and segments:
            loaded = self._segments(
                self._table("segment", SEGMENT, segments_at, segment_size, segments)
            )
        return Elf(self._file, kind, machine, self._little, self._bits, found, loaded)

    def _table(
        self, what: str, formats: dict[int, str], offset: int, entry_size: int, count: int
    ) -> list[tuple[int, ...]]:
        layout = self._layout(formats)
        if entry_size != layout.size:
            raise self._error(f"{what} headers of {entry_size} bytes instead of {layout.size}")
        end = offset + count * entry_size
        if end > len(self._data):
            raise self._error(
                f"{count} {what} headers at offset 0x{offset:x} end at 0x{end:x}, "
                f"the file at 0x{len(self._data):x} (cut short?)"
            )
        return list(layout.iter_unpack(self._data[offset:end]))

    def _sections(self, rows: list[tuple[int, ...]], names_index: int) -> tuple[Section, ...]:
        if names_index >= len(rows):
            raise self._error(f"section {names_index} of {len(rows)} should hold the names")
        _, kind, _, _, offset, size, *_ = rows[names_index]
        unnamed = names_index == 0 or kind == SECTION_NOBITS
        table = b"\0" if unnamed else self._data[offset : offset + size]
        names = Strings(table, f"parse {self._file}: section names at offset 0x{offset:x}")
        found = []
        for index, (name, kind, flags, address, offset, size, link, info, *_) in enumerate(rows):
            called = "" if unnamed else names.at(name)
            section = Section(called, kind, flags, address, offset, size, link, info, self._data)
            in_file = kind not in (SECTION_NULL, SECTION_NOBITS)
            if in_file and offset + size > len(self._data):
                raise self._error(
                    f"section {index} ({called}) at offset 0x{offset:x} ends at "
                    f"0x{offset + size:x}, the file at 0x{len(self._data):x} (cut short?)"
                )
            found.append(section)
        return tuple(found)

    def _segments(self, rows: list[tuple[int, ...]]) -> tuple[Segment, ...]:
        found = []
        for row in rows:
            if self._bits == 64:
                kind, flags, offset, vaddr, _, filesz, memsz, _ = row
            else:
                kind, offset, vaddr, _, filesz, memsz, flags, _ = row
            found.append(Segment(kind, offset, vaddr, filesz, memsz, flags))
        return tuple(found)
