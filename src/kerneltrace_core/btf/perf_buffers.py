"""Which perf buffers each program of an object may write to: those that its code names."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

from kerneltrace_core.btf.elf import Elf, Section, Symbol
from kerneltrace_core.errors import FormatError

__all__ = ["read_perf_buffers"]

# The numbers are those of elf(5).
SECTION_RELA, SECTION_REL = 4, 9
RELOCATION = {SECTION_REL: "QQ", SECTION_RELA: "QQQ"}
MAPS, SUBPROGRAMS = ".maps", ".text"


def read_perf_buffers(
    elf: Elf, buffers: Collection[str], programs: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Return, of these perf buffers, those that each of these programs names, or its subprograms.

    A program that calls any subprogram counts as one that calls them all. Pure. Raises
    FormatError.
    """
    if not buffers or elf.bits != 64:
        return {}
    named = [
        (section, offset, symbol, elf.sections[symbol.section_index].name)
        for section, offset, symbol in _relocations(elf)
        if 0 < symbol.section_index < len(elf.sections)
    ]
    functions = [each for each in elf.symbols() if each.is_function and each.name in programs]
    found = {}
    for function in functions:
        begin, end = function.value, function.value + function.size
        mine = [
            (symbol, where)
            for section, offset, symbol, where in named
            if section == function.section_index and begin <= offset < end
        ]
        if any(where == SUBPROGRAMS for _, where in mine):
            mine += [
                (symbol, where)
                for section, _, symbol, where in named
                if elf.sections[section].name == SUBPROGRAMS
            ]
        maps = {symbol.name for symbol, where in mine if where == MAPS}
        # Without a name: somewhere in the section, so any of them.
        found[function.name] = tuple(each for each in buffers if each in maps or "" in maps)
    return found


def _relocations(elf: Elf) -> Iterator[tuple[int, int, Symbol]]:
    """Yield what names a symbol: the section's index, the offset in there, the symbol."""
    tables: dict[int, list[Symbol]] = {}
    for section in elf.sections:
        entry = RELOCATION.get(section.type)
        if entry is None or not 0 < section.info < len(elf.sections):
            continue
        if not elf.sections[section.info].executable:
            continue
        if section.link not in tables:
            tables[section.link] = _symbols(elf, section)
        symbols = tables[section.link]
        layout = struct.Struct(("<" if elf.little else ">") + entry)
        if section.size % layout.size:
            raise _error(
                elf, section, f"{section.size} bytes are no whole relocations of {layout.size}"
            )
        for offset, info, *_ in layout.iter_unpack(section.data):
            number = info >> 32
            if number > len(symbols):
                raise _error(
                    elf, section, f"it names symbol {number}, and there are {len(symbols)}"
                )
            if number:
                yield section.info, offset, symbols[number - 1]


def _symbols(elf: Elf, section: Section) -> list[Symbol]:
    if not 0 < section.link < len(elf.sections):
        raise _error(elf, section, f"its symbols are in section {section.link}, which is not there")
    return elf.symbols_of(elf.sections[section.link])


def _error(elf: Elf, section: Section, cause: str) -> FormatError:
    return FormatError(
        f"parse {elf.file}: section {section.name} at offset 0x{section.offset:x}: {cause}"
    )
