"""What the macros of kt_event.h leave in an object: event types with their tags, and probes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kerneltrace_core.btf.format import Btf
from kerneltrace_core.btf.kinds import Int, Struct
from kerneltrace_core.btf.shapes import EventTag

__all__ = ["is_mark", "read_events", "read_probes"]

EVENT = re.compile(r"kt_event_(\d{1,5})_(\w+)")
PROBE = re.compile(r"kt_probe_(\d{1,5})_(\w+)")
HEADER = "kt_header"
TAG_MEMBER = "type"
# Counters are 64 cells a CPU.
PROBES_AT_MOST = 64


def is_mark(name: str) -> bool:
    """Tell whether a global variable is one of these marks, and not the program's own."""
    return bool(EVENT.fullmatch(name) or PROBE.fullmatch(name))


def read_events(btf: Btf, names: Iterable[str]) -> dict[str, EventTag]:
    """Return the tags by name of struct; ``names`` are those of global variables.

    Raises FormatError when a tag is given twice, or its struct does not begin with the header.
    """
    found: dict[str, EventTag] = {}
    owners: dict[int, str] = {}
    for name in names:
        match = EVENT.fullmatch(name)
        if match is None:
            continue
        tag, struct = int(match[1]), match[2]
        owner = owners.setdefault(tag, struct)
        if owner != struct:
            raise btf.error(f"event tag {tag} is given to both {owner} and {struct}")
        if struct in found and found[struct].tag != tag:
            raise btf.error(f"struct {struct} has two event tags: {found[struct].tag} and {tag}")
        found[struct] = _tag(btf, struct, tag)
    return found


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


def read_probes(btf: Btf, names: Iterable[str]) -> dict[str, int]:
    """Return the indices of the counters by name of program. Raises FormatError."""
    found: dict[str, int] = {}
    owners: dict[int, str] = {}
    for name in names:
        match = PROBE.fullmatch(name)
        if match is None:
            continue
        index, program = int(match[1]), match[2]
        if index >= PROBES_AT_MOST:
            raise btf.error(f"probe {program} has the index {index} of {PROBES_AT_MOST}")
        owner = owners.setdefault(index, program)
        if owner != program:
            raise btf.error(f"probes {owner} and {program} have one index, {index}")
        found[program] = index
    return found
