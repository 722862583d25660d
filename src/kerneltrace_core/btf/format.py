"""BTF, the kernel's format of type descriptions (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kerneltrace_core.btf.kinds import (
    Array,
    BtfType,
    Enum,
    Float,
    Int,
    Modifier,
    Pointer,
    Struct,
    Typedef,
    TypeTag,
    Void,
)
from kerneltrace_core.btf.strings import Strings
from kerneltrace_core.btf.type_reader import TypeReader
from kerneltrace_core.errors import FormatError

__all__ = ["Btf", "parse_btf"]

MAGIC = 0xEB9F
HEADER = "HBBIIIII"
# No compiler comes near: what is deeper runs in a circle, or wants our stack.
DEEPEST = 64
POINTER_BYTES = 8


@dataclass(frozen=True)
class Btf:
    """Types by id; ``types[0]`` is void. Immutable. ``file`` is what errors call it."""

    file: str
    little: bool
    types: tuple[BtfType, ...]

    def at(self, type_id: int) -> BtfType:
        """Return the type of that id as it stands there. Raises FormatError for an unknown id."""
        if not 0 <= type_id < len(self.types):
            raise self.error(f"type id {type_id} is used, the last one is {len(self.types) - 1}")
        return self.types[type_id]

    def error(self, cause: str) -> FormatError:
        """Return an error about this BTF."""
        return FormatError(f"read BTF of {self.file}: {cause}")

    def find(self, name: str, *kinds: type[BtfType]) -> int | None:
        """Return the id of the first type of that name and, if given, of one of these kinds."""
        for type_id, found in enumerate(self.types):
            if found.name == name and (not kinds or isinstance(found, kinds)):
                return type_id
        return None

    def strip(self, type_id: int) -> int:
        """Return the id of what is below typedefs, const, volatile, restrict and type tags.

        Raises FormatError when they run in a circle.
        """
        current = type_id
        for _ in range(DEEPEST):
            found = self.at(current)
            if not isinstance(found, (Typedef, Modifier, TypeTag)):
                return current
            current = found.target
        raise self.error(f"the typedefs from type {type_id} on run in a circle")

    def resolve(self, type_id: int) -> BtfType:
        """Return what is below typedefs and modifiers. Raises FormatError."""
        return self.types[self.strip(type_id)]

    def size_of(self, type_id: int) -> int:
        """Return the size of a type in bytes; 0 of a flexible array.

        Raises FormatError for what has none: void, functions, declarations.
        """
        count = 1
        current = type_id
        for _ in range(DEEPEST):
            found = self.resolve(current)
            if isinstance(found, Array):
                count *= found.count
                current = found.element
            elif isinstance(found, Pointer):
                return count * POINTER_BYTES
            elif isinstance(found, (Int, Struct, Enum, Float)):
                return count * found.size
            else:
                kind = type(found).__name__.lower()
                raise self.error(f"type {current} ({kind} {found.name}) has no size")
        raise self.error(f"the arrays from type {type_id} on are nested too deep")


def parse_btf(data: bytes, file: str = "BTF") -> Btf:
    """Parse the bytes of a ``.BTF`` section or of ``/sys/kernel/btf/vmlinux``. Pure.

    Either byte order; all kinds up to ENUM64. ``file`` is what errors call it. A whole
    kernel takes about a second. Raises FormatError with the offset of what is malformed.
    """
    if len(data) < 8:
        raise FormatError(f"parse BTF of {file}: {len(data)} bytes are no header")
    little = data[:2] == MAGIC.to_bytes(2, "little")
    if not little and data[:2] != MAGIC.to_bytes(2, "big"):
        raise FormatError(f"parse BTF of {file}: no magic 0x{MAGIC:x} at offset 0x0")
    layout = struct.Struct(("<" if little else ">") + HEADER)
    if len(data) < layout.size:
        raise FormatError(f"parse BTF of {file}: {len(data)} bytes are no header")
    _, version, _, length, types_at, types_size, names_at, names_size = layout.unpack_from(data)
    if version != 1 or length < layout.size:
        raise FormatError(f"parse BTF of {file}: version {version} with a header of {length} bytes")
    for what, at, size in (("types", types_at, types_size), ("strings", names_at, names_size)):
        if length + at + size > len(data):
            raise FormatError(
                f"parse BTF of {file}: its {what} at offset 0x{length + at:x} end at "
                f"0x{length + at + size:x} of 0x{len(data):x} (cut short?)"
            )
    table = data[length + names_at :][:names_size]
    names = Strings(table, f"parse BTF of {file}: strings at offset 0x{length + names_at:x}")
    section = data[length + types_at :][:types_size]
    reader = TypeReader(section, names, little, file, length + types_at)
    return Btf(file, little, (Void(), *reader))
