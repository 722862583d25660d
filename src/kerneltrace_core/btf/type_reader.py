"""The type section of BTF, word by word."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from kerneltrace_core.btf.kinds import (
    Array,
    BtfType,
    DataSection,
    DeclTag,
    Enum,
    Float,
    Forward,
    Function,
    FunctionProto,
    Int,
    Member,
    Modifier,
    Pointer,
    SectionVariable,
    Struct,
    Typedef,
    TypeTag,
    Variable,
)
from kerneltrace_core.btf.strings import Strings
from kerneltrace_core.errors import FormatError

__all__ = ["TypeReader"]


class TypeReader:
    """Walk the type section; each type says by its kind how many words belong to it."""

    def __init__(
        self, section: bytes, names: Strings, little: bool, file: str, offset: int
    ) -> None:
        self._order = "<" if little else ">"
        if len(section) % 4:
            raise FormatError(
                f"parse BTF of {file}: types of {len(section)} bytes are not whole words"
            )
        self._words = struct.unpack(f"{self._order}{len(section) // 4}I", section)
        self._at = 0
        self._names = names
        self._where = f"parse BTF of {file}"
        self._offset = offset

    def __iter__(self) -> Iterator[BtfType]:
        type_id = 1
        while self._at < len(self._words):
            place = self._at
            try:
                yield self._next()
            except _Malformed as cause:
                offset = self._offset + 4 * place
                raise FormatError(
                    f"{self._where}: type {type_id} at offset 0x{offset:x}: {cause}"
                ) from None
            type_id += 1

    def _next(self) -> BtfType:
        name_at, info, size = self._take(3)
        kind, count, flag = info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31)
        read = READERS.get(kind)
        if read is None:
            raise _Malformed(f"kind {kind} is unknown")
        return read(self, self._names.at(name_at), count, flag, size)

    def _take(self, count: int) -> tuple[int, ...]:
        words = self._words[self._at : self._at + count]
        if len(words) != count:
            raise _Malformed(f"{count} words are wanted, {len(words)} are left (cut short?)")
        self._at += count
        return words

    def _rows(self, count: int, width: int) -> Iterator[tuple[int, ...]]:
        words = self._take(count * width)
        return zip(*[iter(words)] * width, strict=True)

    def _int(self, name: str, _count: int, _flag: bool, size: int) -> BtfType:
        (word,) = self._take(1)
        encoding, offset, bits = word >> 24 & 0xF, word >> 16 & 0xFF, word & 0xFF
        if size not in (1, 2, 4, 8, 16) or not 0 < bits + offset <= 8 * size:
            raise _Malformed(f"int {name} has {bits} bits from {offset} on in {size} bytes")
        return Int(
            name, size, bits, bool(encoding & 1), bool(encoding & 2), bool(encoding & 4), offset
        )

    def _pointer(self, _name: str, _count: int, _flag: bool, target: int) -> BtfType:
        return Pointer("", target)

    def _array(self, _name: str, _count: int, _flag: bool, _size: int) -> BtfType:
        return Array("", *self._take(3))

    def _struct(self, name: str, count: int, flag: bool, size: int) -> BtfType:
        return Struct(name, size, self._members(count, flag), is_union=False)

    def _union(self, name: str, count: int, flag: bool, size: int) -> BtfType:
        return Struct(name, size, self._members(count, flag), is_union=True)

    def _members(self, count: int, flag: bool) -> tuple[Member, ...]:
        at = self._names.at
        if flag:  # offsets are 24 bits, bit field sizes the 8 above
            rows = self._rows(count, 3)
            return tuple(Member(at(n), t, o & 0xFFFFFF, o >> 24) for n, t, o in rows)
        return tuple(Member(at(n), t, o, 0) for n, t, o in self._rows(count, 3))

    def _enum(self, name: str, count: int, flag: bool, size: int) -> BtfType:
        rows = self._rows(count, 2)
        values = ((self._names.at(n), _signed(value, 32) if flag else value) for n, value in rows)
        return self._as_enum(name, size, flag, tuple(values), cut=size > 4)

    def _enum64(self, name: str, count: int, flag: bool, size: int) -> BtfType:
        rows = [(self._names.at(n), low | high << 32) for n, low, high in self._rows(count, 3)]
        values = ((each, _signed(value, 64) if flag else value) for each, value in rows)
        return self._as_enum(name, size, flag, tuple(values), cut=False)

    def _as_enum(
        self, name: str, size: int, flag: bool, values: tuple[tuple[str, int], ...], cut: bool
    ) -> BtfType:
        if size not in (1, 2, 4, 8):
            raise _Malformed(f"enum {name} has {size} bytes")
        return Enum(name, size, flag, values, cut)

    def _forward(self, name: str, _count: int, flag: bool, _size: int) -> BtfType:
        return Forward(name, flag)

    def _typedef(self, name: str, _count: int, _flag: bool, target: int) -> BtfType:
        return Typedef(name, target)

    def _modifier(self, _name: str, _count: int, _flag: bool, target: int) -> BtfType:
        return Modifier("", target)

    def _function(self, name: str, linkage: int, _flag: bool, target: int) -> BtfType:
        return Function(name, target, linkage)

    def _prototype(self, _name: str, count: int, _flag: bool, result: int) -> BtfType:
        rows = self._rows(count, 2)
        return FunctionProto("", result, tuple((self._names.at(n), t) for n, t in rows))

    def _variable(self, name: str, _count: int, _flag: bool, target: int) -> BtfType:
        (linkage,) = self._take(1)
        return Variable(name, target, linkage)

    def _section(self, name: str, count: int, _flag: bool, size: int) -> BtfType:
        rows = self._rows(count, 3)
        return DataSection(name, size, tuple(SectionVariable(*row) for row in rows))

    def _float(self, name: str, _count: int, _flag: bool, size: int) -> BtfType:
        if size not in (2, 4, 8, 12, 16):
            raise _Malformed(f"float {name} has {size} bytes")
        return Float(name, size)

    def _decl_tag(self, name: str, _count: int, _flag: bool, target: int) -> BtfType:
        (component,) = self._take(1)
        return DeclTag(name, target, _signed(component, 32))

    def _type_tag(self, name: str, _count: int, _flag: bool, target: int) -> BtfType:
        return TypeTag(name, target)


class _Malformed(Exception):
    """What is wrong with a type; where it is the walk adds."""


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


Read = Callable[[TypeReader, str, int, bool, int], BtfType]

READERS: dict[int, Read] = {
    1: TypeReader._int,
    2: TypeReader._pointer,
    3: TypeReader._array,
    4: TypeReader._struct,
    5: TypeReader._union,
    6: TypeReader._enum,
    7: TypeReader._forward,
    8: TypeReader._typedef,
    9: TypeReader._modifier,  # volatile
    10: TypeReader._modifier,  # const
    11: TypeReader._modifier,  # restrict
    12: TypeReader._function,
    13: TypeReader._prototype,
    14: TypeReader._variable,
    15: TypeReader._section,
    16: TypeReader._float,
    17: TypeReader._decl_tag,
    18: TypeReader._type_tag,
    19: TypeReader._enum64,
}
