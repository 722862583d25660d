"""From a declared class, or a struct's name, to what reads its records from a ring."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from kerneltrace_core.btf.layout import EventTag, ObjectLayout, StructLayout
from kerneltrace_core.errors import EventLayoutError, OptionError
from kerneltrace_core.events.classes import event_class, is_flexible, least_size
from kerneltrace_core.events.declare import declared_of
from kerneltrace_core.events.discriminate import Keep, Where, keep_by_function, tag_of_field
from kerneltrace_core.events.engine import KernelEvent, Selector

__all__ = ["BoundEvent", "bind", "perf_is_sized", "perf_padding", "says_its_size"]

T = TypeVar("T")

HEADER = "kt_header"


@dataclass(frozen=True)
class BoundEvent(Generic[T]):
    """An event class whose fields are where the object has them, and its records. Immutable.

    ``keep``: where a function tells the records apart, frames go through it before the selector.
    """

    cls: type[T]
    selector: Selector
    layout: StructLayout
    keep: Keep | None = None


@overload
def bind(
    event: str, objects: ObjectLayout, *, where: Where | None = ..., perf: bool = ...
) -> BoundEvent[KernelEvent]: ...
@overload
def bind(
    event: type[T], objects: ObjectLayout, *, where: Where | None = ..., perf: bool = ...
) -> BoundEvent[T]: ...
def bind(
    event: type[Any] | str,
    objects: ObjectLayout,
    *,
    where: Where | None = None,
    perf: bool = False,
) -> BoundEvent[Any]:
    """Bind a declared class, or the struct of a name, to an object.

    Records of a type that the object tags (``KT_EVENT``) are told by the tag. Else every record
    must be of this struct's size exactly, and ``where`` tells those of one size apart: a field
    (``"kind"``, ``"header.kind"``) with its value or values, or a function of the record's bytes,
    which is much slower. ``perf``: records come through a perf buffer, with its padding at the end
    of those that do not say their size in our header.

    Raises EventLayoutError where the declaration and the object differ, or the object has no such
    struct; OptionError for a ``where`` that fits no record.
    """
    struct = event if isinstance(event, str) else _struct_of(event)
    layout = objects.structs.get(struct)
    if layout is None:
        raise EventLayoutError(_missing(struct, objects))
    cls = event_class(layout) if isinstance(event, str) else _declared(event, layout)
    offset, size, tags = _tag(objects.events.get(struct), layout, where)
    padded = perf and not says_its_size(layout)
    selector = Selector(
        least_size(layout),
        not is_flexible(layout),
        offset,
        size,
        tags,
        perf_padding(layout.size) if padded else 0,
    )
    return BoundEvent(cls, selector, layout, keep_by_function(where) if callable(where) else None)


def perf_padding(size: int) -> int:
    """Return the bytes that a perf buffer adds to a record (kernel/events/core.c).

    A record and the u32 of its length together fill words of 8 bytes.
    """
    return -(size + 4) % 8


def perf_is_sized(objects: ObjectLayout) -> bool:
    """Tell whether records of an object say their size, so that padding can be taken off."""
    return HEADER in objects.structs


def says_its_size(layout: StructLayout) -> bool:
    """Tell whether records of a struct begin with our header, which has their size."""
    first = layout.members[0] if layout.members else None
    return first is not None and isinstance(first.type, StructLayout) and first.type.name == HEADER


def _tag(
    tag: EventTag | None, layout: StructLayout, where: Where | None
) -> tuple[int, int, tuple[int, ...]]:
    if where is not None and not callable(where):
        given: Any = where
        if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[0], str):
            raise OptionError(
                f"tell records apart by {where!r}: neither (field, value) nor a function"
            )
        return tag_of_field(layout, where)
    if tag is not None and where is None:
        return tag.offset, tag.size, (tag.tag,)
    return -1, 0, ()


def _struct_of(event: type[Any]) -> str:
    given: Any = event
    declared = declared_of(event) if isinstance(given, type) else None
    if declared is None:
        raise EventLayoutError(
            f"bind {event!r}: it names no struct (decorate the class with kernel_event())"
        )
    return declared.struct


def _declared(event: type[Any], layout: StructLayout) -> type[Any]:
    declared = declared_of(event)
    assert declared is not None  # _struct_of() has seen it
    return declared.bind(layout)


def _missing(struct: str, objects: ObjectLayout) -> str:
    known = sorted(objects.events) or sorted(objects.structs)
    close = difflib.get_close_matches(struct, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known[:8]) or 'none'}"
    return f"bind event {struct}: the object has no such struct ({hint})"
