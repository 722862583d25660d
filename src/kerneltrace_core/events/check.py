"""Checking a declared event against the object's struct, field by field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kerneltrace_core.btf.layout import FieldLayout, Scalar, StructLayout, c_name
from kerneltrace_core.errors import EventLayoutError
from kerneltrace_core.events.annotations import offset_of, shape_of
from kerneltrace_core.events.classes import field_by_type, with_rest
from kerneltrace_core.events.decoding import field_of, size_of
from kerneltrace_core.events.engine import Field
from kerneltrace_core.events.naming import field_names

__all__ = ["Difference", "check_fields"]

HEADER = "kt_header"
PADDING = re.compile(r"_*(pad|padding)_?\d*")


class Difference(NamedTuple):
    """A row of the table: what was declared, and what is there."""

    field: str
    offset: str
    declared: str
    there: str


def check_fields(
    name: str, annotations: Mapping[str, Any], layout: StructLayout, *, partial: bool
) -> dict[str, Field]:
    """Return the fields of a declared class, in the order of the struct.

    Offsets are the struct's, so that order and padding cannot go wrong. The header and explicit
    padding need no declaration. Raises EventLayoutError, whose text is a table of all
    differences; TypeError for an annotation that no field can have.
    """
    names = field_names(member.name for member in layout.fields())
    members = dict(zip(names, layout.fields(), strict=True))
    fields: dict[str, Field] = {}
    differences: list[Difference] = []
    for declared, annotation in annotations.items():
        member = members.get(_unmangled(declared, name))
        try:
            found = _match(declared, annotation, layout, member)
        except TypeError as error:
            if isinstance(error, EventLayoutError):
                raise
            raise TypeError(f"declare {name}.{declared}: {error}") from None
        if isinstance(found, Difference):
            differences.append(found)
        else:
            fields[declared] = found
    wanted = {_unmangled(declared, name) for declared in annotations}
    for attribute, member in members.items():
        if attribute in wanted:
            continue
        if isinstance(member.type, StructLayout) and member.type.name == HEADER:
            fields[attribute] = field_by_type(layout, member)
        elif not partial and not PADDING.fullmatch(member.name):
            differences.append(
                Difference(attribute, str(member.offset), "(not declared)", _describe(member))
            )
    if differences:
        raise EventLayoutError(_table(name, layout, differences))
    order = {attribute: place for place, attribute in enumerate(members)}
    return dict(sorted(fields.items(), key=lambda each: order[_unmangled(each[0], name)]))


def _match(
    declared: str, annotation: Any, layout: StructLayout, member: FieldLayout | None
) -> Field | Difference:
    shape, offset = shape_of(annotation), offset_of(annotation)
    if member is None:
        place = "" if offset is None else str(offset)
        return Difference(declared, place, shape.describe(), "(no such field)")
    decoding = shape.fit(member.type, member.bit_size)
    if decoding is None:
        return Difference(declared, str(member.offset), shape.describe(), _describe(member))
    if offset not in (None, member.offset):
        return Difference(declared, f"{offset}", shape.describe(), f"at {member.offset}")
    return field_of(member, with_rest(layout, member, decoding))


def _describe(member: FieldLayout) -> str:
    """Return a C type with its size and sign."""
    layout, size = member.type, size_of(member.type)
    bits = f"{member.bit_size} bits of " if member.bit_size else ""
    text = f"{c_name(layout)}: {bits}{size} byte{'' if size == 1 else 's'}"
    if isinstance(layout, Scalar):
        sign = "signed" if layout.signed else "unsigned"
        text += ", float" if layout.kind == "float" else f", {sign}"
        text += ", big-endian" if layout.big_endian else ""
    return text


def _table(name: str, layout: StructLayout, differences: Iterable[Difference]) -> str:
    rows = [Difference("field", "offset", "declared", "object"), *differences]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row.there]).rstrip()
        for row in rows
    ]
    head = f"check event {name}: it is not {c_name(layout)} of the object ({layout.size} bytes)"
    return "\n  ".join([head, *lines])


def _unmangled(attribute: str, name: str) -> str:
    """Return a name as it was written in the class, before Python made ``__x`` private."""
    private = f"_{name.lstrip('_')}__"
    return "__" + attribute.removeprefix(private) if attribute.startswith(private) else attribute
