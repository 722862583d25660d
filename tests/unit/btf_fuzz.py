"""Read damaged objects, in a process of its own: python btf_fuzz.py SEED CASES OBJECT..."""

from __future__ import annotations

import json
import logging
import random
import resource
import struct
import sys
from collections import Counter
from pathlib import Path

from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.btf.elf import Elf
from kerneltrace_core.btf.format import parse_btf
from kerneltrace_core.btf.layout import ObjectLayout, c_name
from kerneltrace_core.errors import FormatError, KernelTraceError

MEMORY_BYTES = 1 << 30
INTERESTING = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0xFFFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


def damage(data: bytes, chance: random.Random, region: tuple[int, int]) -> bytes:
    """Cut short, flip bits, and write tempting numbers, most of it in ``region``."""
    damaged = bytearray(data)
    kind = chance.randrange(4)
    start, end = region if chance.random() < 0.8 else (0, len(data))
    if kind == 0:
        del damaged[chance.randrange(len(damaged) + 1) :]
    if kind in (1, 3):
        for _ in range(chance.choice((1, 1, 2, 8, 64))):
            place = chance.randrange(start, end)
            damaged[place] ^= 1 << chance.randrange(8)
    if kind in (2, 3):
        for _ in range(chance.choice((1, 1, 2, 8))):
            place = chance.randrange(start, max(start + 1, end - 4)) & ~3
            number = chance.choice((*INTERESTING, chance.randrange(300)))
            struct.pack_into("<I", damaged, min(place, len(damaged) - 4), number)
    return bytes(damaged)


def walk(layout: ObjectLayout) -> str:
    """Use everything that a layout says."""
    outcome = "read"
    for name in layout.structs:
        try:
            fields = layout.structs[name].fields()
        except FormatError:
            outcome = "read in part"
            continue
        for field in fields:
            c_name(field.type)
            assert field.offset + field.type.size <= layout.structs[name].size or field.bit_size
    for variable in layout.variables.values():
        assert variable.type.size <= variable.size
    for described in layout.maps.values():
        assert isinstance(described.key_size, int)
    return outcome


def open_object(data: bytes) -> str:
    """Let libbpf read what a session would give it, and say what is in it."""
    try:
        with BpfObject(data, "fuzzed") as opened:
            opened.programs()
    except KernelTraceError:
        return "refused by libbpf"
    return "read"


def read(data: bytes) -> str:
    """Read an object, or BTF alone; return how it ended."""
    try:
        if data[:4] == b"\x7fELF":
            outcome = walk(ObjectLayout.from_elf(data, "fuzzed"))
            # Only that: libbpf alone is not safe from a file whose tables lie.
            opened = open_object(data)
            return opened if outcome == "read" else outcome
        return walk(ObjectLayout.from_btf(parse_btf(data, "fuzzed")))
    except FormatError as error:
        return "refused" if "fuzzed" in str(error) else "refused without the file's name"


def main(seed: int, cases: int, paths: list[str]) -> None:
    """Run the cases; write how many ended how. Ends with a traceback at the first other end."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable()  # of libbpf, about each of them
    chance = random.Random(seed)
    originals: list[tuple[bytes, list[tuple[int, int]]]] = []
    for path in paths:
        data = Path(path).read_bytes()
        elf = Elf.parse(data)
        # Where damage tells most: the tables of the file, its symbols, its types.
        regions = [(0, 64), (struct.unpack_from("<Q", data, 40)[0], len(data))]
        for name in (".BTF", ".symtab", ".strtab"):
            section = elf.section(name)
            assert section is not None
            regions.append((section.offset, section.offset + section.size))
            if name == ".BTF":
                regions *= 2
                originals.append((section.data, [(0, 24), (24, section.size)]))
        originals.append((data, regions))
    ends: Counter[str] = Counter()
    for case in range(cases):
        data, regions = chance.choice(originals)
        damaged = damage(data, chance, chance.choice(regions))
        try:
            ends[read(damaged)] += 1
        except BaseException:
            print(f"case {case} of seed {seed}: {damaged.hex()}", file=sys.stderr)
            raise
    print(json.dumps(ends))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
