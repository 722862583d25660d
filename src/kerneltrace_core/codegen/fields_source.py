"""The source of what a struct is written from: a TypedDict of its fields."""

from __future__ import annotations

from collections.abc import Iterator

from kerneltrace_core.btf.layout import ArrayLayout, StructLayout
from kerneltrace_core.codegen.annotate import Annotator
from kerneltrace_core.codegen.choose import Chosen
from kerneltrace_core.codegen.names import field_names, unhide

__all__ = ["fields_source"]

# The kernel's own members (struct bpf_spin_lock) are left out when a value is written.
KERNELS = "bpf_"


def fields_source(
    event: str, chosen: Chosen, annotator: Annotator, aliases: dict[str, str]
) -> Iterator[str]:
    """Yield the lines of the TypedDict that events of a class are written from.

    Fields that share bytes or are the kernel's may be absent. ``aliases``: see ``unhide``.
    """
    name, called, struct = chosen.written[event], chosen.called[event], chosen.structs[event]
    optional = struct.is_union or any(_may_be_absent(member.type) for member in struct.members)
    names = field_names(each.name for each in struct.fields())
    attributes = dict(zip(names, struct.fields(), strict=True))
    total = ", total=False" if optional else ""
    yield f"class {name}({annotator.use('TypedDict')}{total}):"
    yield f'    """What {struct.name or called} can be written from."""'
    if attributes:
        yield ""
    for attribute, field in attributes.items():
        annotation = annotator.written(field.type, f"{called}_{field.name}", or_read=True)
        yield f"    {attribute}: {unhide(annotation, attributes, aliases)}"


def _may_be_absent(layout: object) -> bool:
    if isinstance(layout, ArrayLayout):
        return not layout.count
    if not isinstance(layout, StructLayout):
        return False
    return layout.name.startswith(KERNELS) or (not layout.name and layout.is_union)
