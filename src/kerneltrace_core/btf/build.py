"""From BTF types to layouts: sizes, offsets, signs, and what typedefs say about byte order."""

from __future__ import annotations

from dataclasses import replace

from kerneltrace_core.btf.enums import EnumReader
from kerneltrace_core.btf.format import DEEPEST, POINTER_BYTES, Btf
from kerneltrace_core.btf.kinds import (
    Array,
    BtfType,
    Enum,
    Float,
    Forward,
    FunctionProto,
    Int,
    Member,
    Modifier,
    Pointer,
    Struct,
    Typedef,
    TypeTag,
)
from kerneltrace_core.btf.shapes import (
    ArrayLayout,
    FieldLayout,
    Scalar,
    ScalarKind,
    StructLayout,
    TypeLayout,
)

__all__ = ["LayoutBuilder"]

# include/uapi/linux/types.h, and the same without underscores as some write it
BIG_ENDIAN = frozenset(f"{prefix}be{bits}" for prefix in ("__", "") for bits in (16, 32, 64))
# The kernel's largest structs have some hundreds; anonymous ones within each other multiply.
MOST_FIELDS = 8192


class LayoutBuilder:
    """Layouts by type id, each made once. Not thread-safe while it builds."""

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._made: dict[int, tuple[TypeLayout, int]] = {}
        self._tallest = 0
        self._enums = EnumReader(btf)

    def build(self, type_id: int) -> TypeLayout:
        """Return the layout of a type. Raises FormatError for what has none."""
        self._tallest = 0
        return self._build(type_id, 0)

    def _build(self, type_id: int, depth: int) -> TypeLayout:
        """Build what is `depth` levels below the type that was asked for.

        What was made before has a height: levels on levels of it may not add up either, else
        whoever walks the layout runs out of stack.
        """
        made = self._made.get(type_id)
        if made is None:
            beside, self._tallest = self._tallest, 0
            if depth > DEEPEST:
                raise self._btf.error(f"type {type_id} contains itself, or is nested too deep")
            layout = self._make(type_id, depth)
            height = self._tallest + 1
            if height > DEEPEST:
                raise self._btf.error(f"type {type_id} is nested more than {DEEPEST} levels deep")
            made = self._made[type_id] = layout, height
            self._tallest = beside
        self._tallest = max(self._tallest, made[1])
        return made[0]

    def _make(self, type_id: int, depth: int) -> TypeLayout:
        found = self._btf.at(type_id)
        if isinstance(found, Typedef):
            return _called(self._build(found.target, depth + 1), found.name)
        if isinstance(found, (Modifier, TypeTag)):
            return self._build(found.target, depth + 1)
        if isinstance(found, Struct):
            return self._struct(found, depth)
        if isinstance(found, Array):
            return ArrayLayout(self._build(found.element, depth + 1), found.count)
        if isinstance(found, Int):
            kind: ScalarKind = "int"
            if found.bool_:
                kind = "bool"
            elif found.size == 1 and (found.char or found.name == "char"):
                kind = "char"
            return Scalar(found.size, found.signed, kind, name=found.name)
        if isinstance(found, Enum):
            return self._enums.layout(found)
        if isinstance(found, Float):
            return Scalar(found.size, True, "float", name=found.name)
        if isinstance(found, Pointer):
            return Scalar(POINTER_BYTES, False, "pointer", name=self._pointer_name(found))
        kind_name = type(found).__name__.lower()
        raise self._btf.error(f"type {type_id} ({kind_name} {found.name}) has no layout")

    def _struct(self, struct: Struct, depth: int) -> StructLayout:
        members = []
        count = 0
        for member in struct.members:
            layout = self._build(member.type_id, depth + 1)
            members.append(self._member(struct, member, layout))
            if isinstance(layout, StructLayout) and not member.name:
                count += len(layout.fields())
            else:
                count += 1
            if count > MOST_FIELDS:
                raise self._btf.error(f"{_title(struct)} has more than {MOST_FIELDS} fields")
        return StructLayout(struct.name, struct.size, tuple(members), struct.is_union)

    def _member(self, struct: Struct, member: Member, layout: TypeLayout) -> FieldLayout:
        start, bits = member.bit_offset, member.bit_size
        whole = self._btf.resolve(member.type_id)
        if not bits and isinstance(whole, Int) and whole.bits != 8 * whole.size:
            # Bit fields as they were before the kind flag: an int of fewer bits for each.
            start, bits = start + whole.bit_offset, whole.bits
        end = start + (bits or 8 * layout.size)
        if end > 8 * struct.size:
            raise self._btf.error(
                f"member {member.name or '(anonymous)'} of {_title(struct)} ends at bit {end}, "
                f"the {'union' if struct.is_union else 'struct'} at bit {8 * struct.size}"
            )
        if not bits:
            if start % 8:
                raise self._btf.error(
                    f"member {member.name} of {_title(struct)} begins within a byte, at bit {start}"
                )
            return FieldLayout(member.name, start // 8, layout)
        if not isinstance(layout, Scalar) or bits > 8 * layout.size:
            raise self._btf.error(
                f"bit field {member.name} of {_title(struct)} has {bits} bits of a type that "
                "has fewer, or of no number"
            )
        # Where the compiler's storage unit holds it, that is its place; packed ones cross units.
        offset = start // 8 // layout.size * layout.size
        if end > 8 * (offset + layout.size) or offset + layout.size > struct.size:
            offset = start // 8
        # Bits have no bytes to be in network order: the compiler keeps them as any others.
        native = replace(layout, big_endian=False)
        return FieldLayout(member.name, offset, native, start - 8 * offset, bits)

    def _pointer_name(self, pointer: Pointer) -> str:
        stars = "*"
        target: BtfType = pointer
        for _ in range(DEEPEST):
            if isinstance(target, Pointer):
                target = self._btf.at(target.target)
                if isinstance(target, Pointer):
                    stars += "*"
            elif isinstance(target, (Modifier, TypeTag)):
                target = self._btf.at(target.target)
            else:
                break
        return f"{_title(target)} {stars}"


def _called(layout: TypeLayout, name: str) -> TypeLayout:
    """Give a layout the name of its typedef, where the type has no better one."""
    if isinstance(layout, Scalar):
        if layout.kind == "enum" and layout.name:
            return layout
        # A char by any other name is text still; an integer is what its typedef promises.
        return replace(layout, name=name, big_endian=layout.big_endian or name in BIG_ENDIAN)
    if isinstance(layout, StructLayout) and not layout.name:
        return replace(layout, name=name)
    return layout


def _title(found: BtfType) -> str:
    if isinstance(found, (Struct, Forward)):
        return f"{'union' if found.is_union else 'struct'} {found.name or '(anonymous)'}"
    if isinstance(found, Enum):
        return f"enum {found.name or '(anonymous)'}"
    if isinstance(found, FunctionProto):
        return "function"
    return found.name or type(found).__name__.lower()
