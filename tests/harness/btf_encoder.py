"""Write BTF and ELF by hand: what no compiler would write, or writes on other machines."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

KIND = {
    "int": 1, "ptr": 2, "array": 3, "struct": 4, "union": 5, "enum": 6, "fwd": 7, "typedef": 8,
    "volatile": 9, "const": 10, "restrict": 11, "func": 12, "func_proto": 13, "var": 14,
    "datasec": 15, "float": 16, "decl_tag": 17, "type_tag": 18, "enum64": 19,
}  # fmt: skip


@dataclass
class BtfWriter:
    """Collect types; each method returns the id of the type it added."""

    little: bool = True
    types: list[bytes] = field(default_factory=list)
    strings: bytearray = field(default_factory=lambda: bytearray(1))

    def word(self, *values: int) -> bytes:
        return struct.pack(
            f"{'<' if self.little else '>'}{len(values)}I",
            *(value & 0xFFFFFFFF for value in values),
        )

    def string(self, text: str) -> int:
        if not text:
            return 0
        offset = len(self.strings)
        self.strings += text.encode() + b"\0"
        return offset

    def add(
        self, kind: str, name: str, size_or_type: int, *rest: int, count: int = 0, flag: int = 0
    ) -> int:
        info = flag << 31 | KIND[kind] << 24 | count
        self.types.append(self.word(self.string(name), info, size_or_type, *rest))
        return len(self.types)

    def integer(
        self, name: str, size: int, encoding: int = 0, bits: int | None = None, offset: int = 0
    ) -> int:
        bits = 8 * size if bits is None else bits
        return self.add("int", name, size, encoding << 24 | offset << 16 | bits)

    def structure(
        self,
        name: str,
        size: int,
        members: list[tuple[str, int, int, int]],
        *,
        flag: int = 1,
        kind: str = "struct",
    ) -> int:
        """Members are (name, type id, bit offset, bit size)."""
        rest = [
            word
            for member, type_id, bit_offset, bit_size in members
            for word in (self.string(member), type_id, bit_size << 24 | bit_offset)
        ]
        return self.add(kind, name, size, *rest, count=len(members), flag=flag)

    def enum(self, name: str, size: int, values: list[tuple[str, int]], signed: bool) -> int:
        rest = [word for value, number in values for word in (self.string(value), number)]
        return self.add("enum", name, size, *rest, count=len(values), flag=int(signed))

    def enum64(self, name: str, values: list[tuple[str, int]], signed: bool) -> int:
        rest = [
            word
            for value, number in values
            for word in (self.string(value), number & 0xFFFFFFFF, number >> 32)
        ]
        return self.add("enum64", name, 8, *rest, count=len(values), flag=int(signed))

    def datasec(self, name: str, variables: list[tuple[int, int, int]], size: int = 0) -> int:
        """Variables are (type id, offset, size)."""
        rest = [word for row in variables for word in row]
        return self.add("datasec", name, size, *rest, count=len(variables))

    def blob(self) -> bytes:
        types = b"".join(self.types)
        head = struct.pack("<HBB" if self.little else ">HBB", 0xEB9F, 1, 0)
        head += self.word(24, 0, len(types), len(types), len(self.strings))
        return head + types + bytes(self.strings)


@dataclass
class ElfSection:
    """A section to be written."""

    name: str
    data: bytes = b""
    type: int = 1
    flags: int = 0
    link: int = 0
    address: int = 0


@dataclass
class ElfSymbol:
    """A symbol to be written; ``section`` counts from 1."""

    name: str
    value: int = 0
    size: int = 0
    kind: int = 2
    binding: int = 1
    section: int = 1


def write_elf(
    sections: list[ElfSection],
    symbols: list[ElfSymbol] = [],  # noqa: B006
    *,
    bits: int = 64,
    little: bool = True,
    segments: list[tuple[int, int, int, int, int, int]] = [],  # noqa: B006
    machine: int = 247,
) -> bytes:
    """Write an ELF file; segments are (type, offset, vaddr, filesz, memsz, flags).

    .symtab, .strtab and .shstrtab follow the given sections in this order.
    """
    order = "<" if little else ">"
    wide = bits == 64
    names = bytearray(1)

    def named(text: str) -> int:
        names.extend(text.encode() + b"\0")
        return len(names) - len(text.encode()) - 1

    table = bytes(24 if wide else 16)
    for each in symbols:
        info = each.binding << 4 | each.kind
        name, place = named(each.name), each.section
        if wide:
            table += struct.pack(f"{order}IBBHQQ", name, info, 0, place, each.value, each.size)
        else:
            table += struct.pack(f"{order}IIIBBH", name, each.value, each.size, info, 0, place)
    everything = [ElfSection("", type=0), *sections]
    everything.append(ElfSection(".symtab", table, 2, link=len(everything) + 1))
    everything.append(ElfSection(".strtab", bytes(names), 3))
    section_names = bytearray(1)
    name_at = []
    for each_section in [*everything, ElfSection(".shstrtab")]:
        name_at.append(len(section_names) if each_section.name else 0)
        section_names += each_section.name.encode() + b"\0" if each_section.name else b""
    everything.append(ElfSection(".shstrtab", bytes(section_names), 3))

    header_size, row_size = (64, 64) if wide else (52, 40)
    segment_size = 56 if wide else 32
    body = b""
    rows = b""
    start = header_size + len(segments) * segment_size
    for each_section, name in zip(everything, name_at, strict=True):
        data = b"" if each_section.type == 8 else each_section.data
        place = start + len(body) if each_section.type else 0
        body += data
        row = (
            name, each_section.type, each_section.flags, each_section.address, place,
            len(each_section.data), each_section.link, 0, 1, 0,
        )  # fmt: skip
        rows += struct.pack(f"{order}IIQQQQIIQQ" if wide else f"{order}10I", *row)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if little else 2, 1]) + bytes(9)
    header = ident + struct.pack(
        f"{order}HHIQQQIHHHHHH" if wide else f"{order}HHIIIIIHHHHHH",
        1, machine, 1, 0, header_size if segments else 0, start + len(body), 0,
        header_size, segment_size, len(segments), row_size, len(everything), len(everything) - 1,
    )  # fmt: skip
    table = b""
    for kind, offset, vaddr, filesz, memsz, flags in segments:
        if wide:
            table += struct.pack(
                f"{order}IIQQQQQQ", kind, flags, offset, vaddr, vaddr, filesz, memsz, 1
            )
        else:
            table += struct.pack(f"{order}8I", kind, offset, vaddr, vaddr, filesz, memsz, flags, 1)
    return header + table + body + rows
