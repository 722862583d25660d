"""The source of event classes and enums."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kerneltrace_core.btf.layout import ObjectLayout, Scalar, StructLayout
from kerneltrace_core.codegen.annotate import Annotator
from kerneltrace_core.codegen.names import Names, field_names, member_name, unhide

__all__ = ["enum_source", "event_source", "fields_of"]

# Explicit padding need not be declared, and nobody reads it.
PADDING = re.compile(r"_*(pad|padding)_?\d*")


def fields_of(struct: StructLayout) -> dict[str, str]:
    """Return the C fields that a class declares, by their Python names."""
    names = [each.name for each in struct.fields()]
    return {
        attribute: name
        for attribute, name in zip(field_names(names), names, strict=True)
        if not PADDING.fullmatch(name) and not _is_private(name)
    }


def _is_private(name: str) -> bool:
    """Tell whether Python would make another name of it in the body of a class."""
    return name.startswith("__") and not name.endswith("__")


def enum_source(name: str, enum: Scalar) -> Iterator[str]:
    """Yield the lines of an enum's class."""
    title = f"enum {enum.name}" if enum.name else "An enum without a name"
    yield f"class {name}(IntEnum):"
    yield f'    """{title}; a number that has no name here stays an int."""'
    yield ""
    members = Names()
    for value, number in enum.values:
        yield f"    {members.claim(member_name(value))} = {number}"


def event_source(
    name: str,
    struct: StructLayout,
    layout: ObjectLayout,
    annotator: Annotator,
    aliases: dict[str, str],
) -> Iterator[str]:
    """Yield the lines of a struct's class; ``aliases``: see ``unhide``."""
    # By its C name, or by where it is used.
    called = annotator.chosen.called[name]
    kind = "union" if struct.is_union else "struct"
    title = f"{kind} {struct.name}" if struct.name else f"A {kind} without a name"
    tag = layout.events.get(struct.name)
    told = f", tag {tag.tag}" if tag else ""
    by_name = {each.name: each for each in struct.fields()}
    attributes = fields_of(struct)
    hidden = any(_is_private(each) and not PADDING.fullmatch(each) for each in by_name)
    partial = ", partial=True" if hidden else ""
    yield f'@{annotator.use("kernel_event")}("{struct.name or called}"{partial})'
    yield f"class {name}({annotator.use('KernelEvent')}):"
    yield f'    """{title}, {struct.size} byte{"" if struct.size == 1 else "s"}{told}."""'
    if attributes:
        yield ""
    for attribute, field in attributes.items():
        annotation = annotator.field(called, by_name[field])
        yield f"    {attribute}: {unhide(annotation, attributes, aliases)}"
