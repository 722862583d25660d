"""Batches of events as columns: views of the packed records, decoded by nobody."""

from __future__ import annotations

import sys
from collections.abc import Iterator, KeysView, Sequence
from functools import cached_property
from typing import Any

from kerneltrace_core.btf.layout import ArrayLayout, FieldLayout, Scalar, StructLayout, TypeLayout
from kerneltrace_core.errors import OptionError
from kerneltrace_core.events.classes import event_class
from kerneltrace_core.events.naming import field_names

__all__ = ["Columns"]

CODES = {"u": "BHIQ", "s": "bhiq", "f": "__fd"}


class Columns:
    """Events of one type, by column: ``batch["fd"]`` is all their ``fd``. Immutable.

    A column of numbers is a memoryview in the C type (enums, addresses and devices as their
    numbers), without a copy where the compiler aligned the field; text, bytes and arrays are
    lists. Fields of nested structs are named ``header.cpu``. ``len()`` is the number of events.
    """

    def __init__(self, layout: StructLayout, data: bytes | bytearray | memoryview) -> None:
        """Take packed records of ``layout.size`` bytes; OptionError if they end within one."""
        if not layout.size or len(data) % layout.size:
            raise OptionError(
                f"make columns of {layout.name}: {len(data)} bytes are not records of {layout.size}"
            )
        self.layout = layout
        self.data = memoryview(data).toreadonly()
        self._made: dict[str, Sequence[Any]] = {}

    @cached_property
    def _places(self) -> dict[str, tuple[int, FieldLayout]]:
        return dict(_places(self.layout, "", 0))

    def __len__(self) -> int:
        return len(self.data) // self.layout.size

    def __getitem__(self, name: str) -> Sequence[Any]:
        column = self._made.get(name)
        if column is None:
            offset, member = self._places[name]
            column = self._made[name] = self._column(name, offset, member)
        return column

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __repr__(self) -> str:
        return f"<{len(self)} x {self.layout.name}: {', '.join(self._places)}>"

    def keys(self) -> KeysView[str]:
        """Return the names, in the order of the struct."""
        return self._places.keys()

    def numpy(self) -> Any:
        """Return a structured array over the same bytes, without bit fields. Needs numpy."""
        import numpy

        return numpy.frombuffer(self.data, numpy.dtype(dtype_of(self.layout)))

    def _column(self, name: str, offset: int, member: FieldLayout) -> Sequence[Any]:
        layout, stride = member.type, self.layout.size
        code = _code(layout)
        if code is None or member.bit_size:
            return self._objects(name)
        size = layout.size
        if not _swapped(layout) and not offset % size and not stride % size:
            return self.data.cast(code)[offset // size :: stride // size]  # type: ignore[call-overload,no-any-return]
        gathered = bytearray(size * len(self))
        for byte in range(size):
            place = size - 1 - byte if _swapped(layout) else byte
            gathered[place::size] = self.data[offset + byte :: stride]
        return memoryview(gathered).toreadonly().cast(code)  # type: ignore[call-overload,no-any-return]

    def _objects(self, name: str) -> list[Any]:
        cls, size = event_class(self.layout), self.layout.size
        path = name.split(".")
        column = []
        for at in range(0, len(self.data), size):
            value: Any = cls.from_bytes(self.data[at : at + size])
            for part in path:
                value = getattr(value, part)
            column.append(value)
        return column


def dtype_of(layout: StructLayout) -> dict[str, Any]:
    """Return what numpy makes a dtype of."""
    names, formats, offsets = [], [], []
    for name, member in _named(layout):
        if not member.bit_size:
            names.append(name)
            formats.append(_format(member.type))
            offsets.append(member.offset)
    return {"names": names, "formats": formats, "offsets": offsets, "itemsize": layout.size}


def _format(layout: TypeLayout) -> Any:
    if isinstance(layout, StructLayout):
        return dtype_of(layout)
    if isinstance(layout, ArrayLayout):
        element = layout.element
        if isinstance(element, Scalar) and element.kind == "char":
            return f"S{layout.count}"
        return (_format(element), (layout.count,))
    if _code(layout) is None:
        return f"V{layout.size}"
    if layout.kind == "bool":
        return "?" if layout.size == 1 else f"u{layout.size}"
    order = ">" if layout.big_endian else "="
    kind = "f" if layout.kind == "float" else "i" if layout.signed else "u"
    return f"{order}{kind}{layout.size}"


def _code(layout: TypeLayout) -> str | None:
    """Return a number's code in memoryviews, None of what is no number there."""
    if not isinstance(layout, Scalar) or layout.size not in (1, 2, 4, 8):
        return None
    if layout.kind == "bool" and layout.size == 1:
        return "?"
    kind = "f" if layout.kind == "float" else "s" if layout.signed else "u"
    code = CODES[kind][layout.size.bit_length() - 1]
    return None if code == "_" else code


def _swapped(layout: TypeLayout) -> bool:
    return isinstance(layout, Scalar) and layout.big_endian and sys.byteorder == "little"


def _places(layout: StructLayout, before: str, base: int) -> Iterator[tuple[str, tuple[int, Any]]]:
    for attribute, member in _named(layout):
        name = before + attribute
        if isinstance(member.type, StructLayout):
            yield from _places(member.type, f"{name}.", base + member.offset)
        else:
            yield name, (base + member.offset, member)


def _named(layout: StructLayout) -> Iterator[tuple[str, FieldLayout]]:
    names = field_names(member.name for member in layout.fields())
    return zip(names, layout.fields(), strict=True)
