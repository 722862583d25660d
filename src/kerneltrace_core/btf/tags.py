"""What the macros of kt_event.h leave in an object: event types with their tags, and probes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kerneltrace_core.btf.format import Btf
from kerneltrace_core.btf.kinds import Forward, Int, Pointer, Struct
from kerneltrace_core.btf.placed import Placed
from kerneltrace_core.btf.shapes import EventTag

__all__ = ["is_mark", "read_events", "read_probes"]

EVENT = "kt_event_"
PROBE = re.compile(r"kt_probe_(0[xX][0-9a-fA-F]+|[0-9]+)_(\w+)")
# How C writes a number; a macro's name that stands for one is replaced before, an enum's is not.
NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)[uUlL]*")
HEADER = "kt_header"
TAG_MEMBER = "type"
# Counters are 64 cells a CPU.
PROBES_AT_MOST = 64


def is_mark(btf: Btf, variable: Placed) -> bool:
    """Tell whether a global variable is one of these marks, and not the program's own."""
    return PROBE.fullmatch(variable.name) is not None or _event_of(btf, variable) is not None


def read_events(btf: Btf, variables: Iterable[Placed]) -> dict[str, EventTag]:
    """Return the tags by name of struct.

    Raises FormatError when a tag is no number, or given twice, or when its struct does not begin
    with the header.
    """
    found: dict[str, EventTag] = {}
    owners: dict[int, str] = {}
    for variable in variables:
        event = _event_of(btf, variable)
        if event is None:
            continue
        text, struct = event
        number = NUMBER.fullmatch(text)
        if number is None:
            raise btf.error(
                f"the tag of event {struct} is {text}, which is no number "
                "(KT_EVENT takes one that is written out, or a macro for it)"
            )
        tag = _number(number[1])
        owner = owners.setdefault(tag, struct)
        if owner != struct:
            raise btf.error(f"event tag {tag} is given to both {owner} and {struct}")
        if struct in found and found[struct].tag != tag:
            raise btf.error(f"struct {struct} has two event tags: {found[struct].tag} and {tag}")
        found[struct] = _tag(btf, struct, tag)
    return found


def _event_of(btf: Btf, variable: Placed) -> tuple[str, str] | None:
    """Return tag and struct of ``const struct S *const kt_event_TAG_S``."""
    if not variable.name.startswith(EVENT):
        return None
    pointer = btf.resolve(variable.target)
    struct = btf.resolve(pointer.target) if isinstance(pointer, Pointer) else None
    ending = f"_{struct.name}" if isinstance(struct, (Struct, Forward)) else None
    rest = variable.name[len(EVENT) :]
    if ending is None or not rest.endswith(ending) or rest == ending[1:]:
        return None
    return rest[: -len(ending)], ending[1:]


def _number(text: str) -> int:
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    if text[0] == "0" and text.strip("01234567") == "":
        return int(text, 8)
    return int(text)


def _tag(btf: Btf, name: str, tag: int) -> EventTag:
    type_id = btf.find(name, Struct)
    struct = btf.at(type_id) if type_id is not None else None
    if not isinstance(struct, Struct) or not struct.members:
        raise btf.error(f"event {name} with tag {tag}: there is no such struct with members")
    header = btf.resolve(struct.members[0].type_id)
    if not isinstance(header, Struct) or header.name != HEADER or struct.members[0].bit_offset:
        raise btf.error(f"event {name} with tag {tag} does not begin with a struct {HEADER}")
    for member in header.members:
        number = btf.resolve(member.type_id)
        if member.name == TAG_MEMBER and isinstance(number, Int) and not member.bit_offset % 8:
            if tag >> 8 * number.size:
                raise btf.error(f"event tag {tag} of {name} does not fit {number.size} bytes")
            return EventTag(name, tag, member.bit_offset // 8, number.size)
    raise btf.error(f"struct {HEADER} has no integer called {TAG_MEMBER}")


def read_probes(btf: Btf, variables: Iterable[Placed]) -> dict[str, int]:
    """Return the indices of the counters by name of program. Raises FormatError."""
    found: dict[str, int] = {}
    owners: dict[int, str] = {}
    for variable in variables:
        match = PROBE.fullmatch(variable.name)
        if match is None:
            continue
        index, program = _number(match[1]), match[2]
        if index >= PROBES_AT_MOST:
            raise btf.error(f"probe {program} has the index {index} of {PROBES_AT_MOST}")
        owner = owners.setdefault(index, program)
        if owner != program:
            raise btf.error(f"probes {owner} and {program} have one index, {index}")
        found[program] = index
    return found
