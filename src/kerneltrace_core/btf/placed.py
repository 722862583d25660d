"""Where global variables are: BTF says their types, the symbols of the ELF file the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kerneltrace_core.btf.elf import Elf, Symbol
from kerneltrace_core.btf.format import Btf
from kerneltrace_core.btf.kinds import DataSection, Variable

__all__ = ["Placed", "place_variables"]

STATIC = 0


class Placed(NamedTuple):
    """A variable of BTF, and its place in its section in bytes."""

    name: str
    section: str
    offset: int
    size: int
    target: int  # the id of its type


def place_variables(btf: Btf, elf: Elf | None) -> tuple[Placed, ...]:
    """Return the variables of all sections, static ones first. Raises FormatError.

    Compilers leave the offset of a global one to the linker: it is 0 in an object that was not
    linked, and its symbol knows. Without ``elf`` the offsets are taken as they are. A linked
    object may have a static and a global one of the same name: by its name the last is meant.
    """
    symbols = {} if elf is None else dict(_globals(elf))
    found: dict[bool, list[Placed]] = {True: [], False: []}
    for section in btf.types:
        if not isinstance(section, DataSection):
            continue
        for each in section.variables:
            variable = btf.at(each.type_id)
            if not isinstance(variable, Variable):
                # Functions too may be in a section (.ksyms); they are no data.
                continue
            offset = each.offset
            static = variable.linkage == STATIC
            symbol = symbols.get((section.name, variable.name))
            if symbol is not None and not static:
                offset = symbol.value
            if elf is not None:
                _check(btf, elf, section.name, variable.name, offset + each.size)
            placed = Placed(variable.name, section.name, offset, each.size, variable.target)
            found[static].append(placed)
    return (*found[True], *found[False])


def _check(btf: Btf, elf: Elf, section: str, name: str, end: int) -> None:
    """Refuse a variable that is not inside of its section, where the file has one."""
    place = elf.section(section)
    if place is not None and end > place.size:
        raise btf.error(
            f"variable {name} ends at 0x{end:x} of section {section} (at offset "
            f"0x{place.offset:x} of the file), which has 0x{place.size:x} bytes"
        )


def _globals(elf: Elf) -> Iterator[tuple[tuple[str, str], Symbol]]:
    for symbol in elf.symbols():
        if not symbol.is_local and 0 < symbol.section_index < len(elf.sections):
            yield (elf.sections[symbol.section_index].name, symbol.name), symbol
