"""Event classes from a struct's layout alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from kerneltrace_core.btf.layout import (
    ArrayLayout,
    FieldLayout,
    Scalar,
    StructLayout,
    TypeLayout,
    c_name,
)
from kerneltrace_core.events.decoding import (
    Decoding,
    decode_array,
    decode_scalar,
    field_of,
    raw,
    size_of,
)
from kerneltrace_core.events.engine import REST, Field, KernelEvent
from kerneltrace_core.events.naming import class_name, field_names

__all__ = [
    "decode",
    "event_class",
    "field_by_type",
    "is_flexible",
    "least_size",
    "make_class",
    "restore",
    "with_rest",
]


_made: dict[StructLayout, type[KernelEvent]] = {}
_making = threading.RLock()  # of one layout there is one class: events are equal by class


def event_class(layout: StructLayout) -> type[KernelEvent]:
    """Return the class of a struct or union: one for equal layouts. Thread-safe.

    Its attributes are the C fields, those of anonymous members too, in the order of the source;
    of a union all can be read. ``char[N]`` is str, ``__u8[N]`` bytes, other arrays are tuples, an
    enum is its IntEnum (int for values without a name), a nested struct an event of its own.
    """
    with _making:
        made = _made.get(layout)
        if made is None:
            members = layout.fields()
            names = field_names(each.name for each in members)
            made = _made[layout] = make_class(
                class_name(layout.name),
                KernelEvent,
                layout,
                dict(zip(names, (field_by_type(layout, each) for each in members), strict=True)),
                (restore, layout),
            )
        return made


def field_by_type(layout: StructLayout, member: FieldLayout) -> Field:
    """Return the field of a member as it is in C."""
    label = isinstance(member.type, ArrayLayout) and not member.type.count
    if label and not _is_last(layout, member):
        return field_of(member, Decoding("b", 0))  # of the field after it
    return field_of(member, with_rest(layout, member, decode(member.type)))


def with_rest(layout: StructLayout, member: FieldLayout, decoding: Decoding) -> Decoding:
    """Let a nested struct at the end, whose last array is flexible, have the rest of the record."""
    if decoding.kind != "n" or decoding.shape or not _may_be_longer(member.type):
        return decoding
    return decoding._replace(size=REST) if _is_last(layout, member) else decoding


def _is_last(layout: StructLayout, member: FieldLayout) -> bool:
    """Tell whether nothing of a size is after a member; a union may have several at the end."""
    fields = layout.fields()
    place = next(index for index, each in enumerate(fields) if each is member)
    return all(_may_be_longer(each.type) for each in fields[place + 1 :])


def make_class(
    name: str,
    base: type[KernelEvent],
    layout: StructLayout,
    fields: Mapping[str, Field],
    maker: tuple[object, ...],
) -> type[KernelEvent]:
    """Return a class of these fields; ``maker`` is what unpickling calls."""
    namespace: dict[str, object] = {
        "__slots__": (),  # an event is its bytes and nothing else
        "__doc__": c_name(layout),
        "__module__": __name__,
        "__match_args__": tuple(fields),
        "_size_": least_size(layout),
        "_exact_": not is_flexible(layout),
        "_fields_": tuple(fields),
        "_reduce_": maker,
        **fields,
    }
    if base is not KernelEvent:  # the user's words for it
        for kept in ("__doc__", "__module__", "__qualname__"):
            namespace[kept] = getattr(base, kept)
    return type(name, (base,), namespace)


def restore(layout: StructLayout, data: bytes, origin: int) -> KernelEvent:
    """Make an event again that was pickled."""
    return event_class(layout).from_bytes(data, origin)


def is_flexible(layout: StructLayout) -> bool:
    """Say whether records of this struct have more bytes than its size."""
    fields = layout.fields()
    return bool(fields) and _may_be_longer(fields[-1].type)


def _may_be_longer(layout: TypeLayout) -> bool:
    """Say whether a struct that ends with this type is flexible."""
    if isinstance(layout, StructLayout):
        return is_flexible(layout)
    return isinstance(layout, ArrayLayout) and not layout.count


def least_size(layout: StructLayout) -> int:
    """Return the bytes that a record has at least: of a flexible struct what is before its array.

    That may be less than C's sizeof, which has the padding after an array of no elements.
    """
    if not is_flexible(layout):
        return layout.size
    return max(map(_end, layout.fields()))


def _end(member: FieldLayout) -> int:
    if isinstance(member.type, StructLayout):
        return member.offset + least_size(member.type)
    if member.bit_size:
        return member.offset + (member.bit_offset + member.bit_size + 7) // 8
    return member.offset + size_of(member.type)


def decode(layout: TypeLayout) -> Decoding:
    """Decode a type as it is in C."""
    if isinstance(layout, StructLayout):
        return Decoding("n", layout.size, convert=event_class(layout))
    if isinstance(layout, Scalar):
        return decode_scalar(layout)
    element = layout.element
    if isinstance(element, Scalar) and element.size == 1 and not element.big_endian:
        if element.kind == "char":
            return Decoding("c", layout.count or REST)
        if element.kind == "int" and not element.signed:
            return raw(layout)
    return decode_array(layout, decode)
