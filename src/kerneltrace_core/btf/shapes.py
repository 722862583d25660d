"""What a C type looks like in memory: scalars, arrays, structs, and what an object is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

__all__ = [
    "ArrayLayout",
    "EventTag",
    "FieldLayout",
    "MapLayout",
    "ProgramLayout",
    "Scalar",
    "ScalarKind",
    "StructLayout",
    "TypeLayout",
    "VariableLayout",
    "c_name",
]

ScalarKind = Literal["int", "bool", "char", "float", "pointer", "enum"]


@dataclass(frozen=True)
class Scalar:
    """One number of ``size`` bytes. Immutable.

    ``name`` is the name that the C source uses for it: its outermost typedef (``__be32``,
    ``pid_t``), else the base type's own; of an enum its tag. ``values`` are an enum's, in
    order; aliases of one number are kept. In the machine's byte order unless ``big_endian``.
    """

    size: int
    signed: bool
    kind: ScalarKind
    big_endian: bool = False
    name: str = ""
    values: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class ArrayLayout:
    """``count`` elements without gaps; 0 of them: flexible, the rest of the record. Immutable."""

    element: TypeLayout
    count: int

    @property
    def size(self) -> int:
        """Return the size in bytes; 0 of a flexible array."""
        return self.element.size * self.count


@dataclass(frozen=True)
class FieldLayout:
    """A member of a struct or union. Immutable.

    ``name``: its C name, "" of an anonymous struct or union. ``offset``: bytes from the
    beginning of the struct. ``bit_size`` 0: no bit field. A bit field is in the
    ``(bit_offset + bit_size + 7) // 8`` bytes at ``offset``, never outside of the struct; read as
    one number its value is ``number >> bit_offset`` masked to ``bit_size`` bits on little-endian
    machines, where big-endian ones shift by what is left on the right.
    """

    name: str
    offset: int
    type: TypeLayout
    bit_offset: int = 0
    bit_size: int = 0


@dataclass(frozen=True)
class StructLayout:
    """A struct, or a union whose members share its bytes. Immutable. ``name`` may be ""."""

    name: str
    size: int
    members: tuple[FieldLayout, ...]
    is_union: bool = False

    def __hash__(self) -> int:
        # Without the members' types: types within types can be twice as many at every level.
        return hash((self.name, self.size, tuple(each.name for each in self.members)))

    def fields(self) -> tuple[FieldLayout, ...]:
        """Return the members by which C knows them: those of anonymous ones at their place.

        Offsets are relative to this struct. Unnamed bit fields (padding) are left out.
        """
        return self._fields

    @cached_property
    def _fields(self) -> tuple[FieldLayout, ...]:
        found: list[FieldLayout] = []
        for member in self.members:
            if member.name:
                found.append(member)
            elif isinstance(member.type, StructLayout):
                for inner in member.type.fields():
                    place = member.offset + inner.offset
                    found.append(
                        FieldLayout(inner.name, place, inner.type, inner.bit_offset, inner.bit_size)
                    )
        return tuple(found)


TypeLayout = Scalar | ArrayLayout | StructLayout


@dataclass(frozen=True)
class MapLayout:
    """A map definition of ``.maps``. Immutable.

    ``type``: the number of enum bpf_map_type. ``key`` and ``value`` are None where the source
    gives only a size, or none at all. ``max_entries`` 0: not given (the loader must set it).
    ``inner``: what a map of maps holds.
    """

    name: str
    type: int
    max_entries: int
    key: TypeLayout | None
    value: TypeLayout | None
    key_size: int
    value_size: int
    inner: MapLayout | None = None
    flags: int = 0


@dataclass(frozen=True)
class VariableLayout:
    """A global variable. Immutable. ``offset``: bytes from the beginning of its section."""

    name: str
    section: str
    offset: int
    size: int
    type: TypeLayout
    writable: bool


@dataclass(frozen=True)
class ProgramLayout:
    """A program: a global function in an executable section other than ``.text``. Immutable."""

    name: str
    section: str


@dataclass(frozen=True)
class EventTag:
    """How a record says that it is of this type. Immutable.

    ``name``: of the struct. ``tag``: the number that the ``size`` bytes at ``offset`` hold.
    """

    name: str
    tag: int
    offset: int = 0
    size: int = 2


def c_name(layout: TypeLayout) -> str:
    """Return a type as C would write it: ``__u32``, ``struct key``, ``char[16]``."""
    if isinstance(layout, ArrayLayout):
        inner, counts = layout.element, f"[{layout.count or ''}]"
        while isinstance(inner, ArrayLayout):
            counts += f"[{inner.count or ''}]"
            inner = inner.element
        return c_name(inner) + counts
    if isinstance(layout, StructLayout):
        return f"{'union' if layout.is_union else 'struct'} {layout.name or '(anonymous)'}"
    return layout.name or layout.kind
