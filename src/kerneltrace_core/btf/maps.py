"""Map definitions: what ``__uint``, ``__type`` and ``__array`` of bpf_helpers.h leave in BTF."""

from __future__ import annotations

from kerneltrace_core.btf.build import LayoutBuilder
from kerneltrace_core.btf.format import Btf
from kerneltrace_core.btf.kinds import Array, Enum, Member, Pointer, Struct
from kerneltrace_core.btf.shapes import MapLayout

__all__ = ["read_maps"]

SECTION = ".maps"
# A map of maps or of programs holds descriptors, whatever its source says.
DESCRIPTOR_BYTES = 4


def read_maps(btf: Btf, builder: LayoutBuilder, variables: dict[str, int]) -> dict[str, MapLayout]:
    """Return the map definitions; ``variables`` are the type ids of those in ``.maps``."""
    return {name: _read_map(btf, builder, name, type_id) for name, type_id in variables.items()}


def _read_map(btf: Btf, builder: LayoutBuilder, name: str, type_id: int) -> MapLayout:
    definition = _definition(btf, name, type_id)
    members = {member.name: member for member in definition.members}
    inner = None
    if "values" in members:
        inner = _inner(btf, builder, name, members["values"])
    key_type = _pointed(btf, name, members.get("key"))
    value_type = _pointed(btf, name, members.get("value"))
    key = None if key_type is None else builder.build(key_type)
    value = None if value_type is None else builder.build(value_type)
    key_size = key.size if key else _number(btf, name, members.get("key_size"))
    value_size = value.size if value else _number(btf, name, members.get("value_size"))
    if "values" in members:
        value_size = DESCRIPTOR_BYTES
    return MapLayout(
        name,
        _number(btf, name, members.get("type")),
        _number(btf, name, members.get("max_entries")),
        key,
        value,
        key_size,
        value_size,
        inner,
        _number(btf, name, members.get("map_flags")),
    )


def _definition(btf: Btf, name: str, type_id: int) -> Struct:
    found = btf.resolve(type_id)
    if not isinstance(found, Struct):
        raise btf.error(f"map {name} in section {SECTION} is no struct")
    return found


def _inner(btf: Btf, builder: LayoutBuilder, name: str, values: Member) -> MapLayout | None:
    """Return the definition in ``__array(values, ...)``; None where that holds programs."""
    array = btf.resolve(values.type_id)
    pointer = btf.resolve(array.element) if isinstance(array, Array) else None
    if not isinstance(pointer, Pointer):
        raise btf.error(f"map {name}: its values are no array of pointers")
    target = btf.strip(pointer.target)
    inner = btf.at(target)
    if not isinstance(inner, Struct):
        return None
    if any(member.name == "values" for member in inner.members):
        raise btf.error(f"map {name}: a map of maps of maps does not exist")
    return _read_map(btf, builder, f"{name}.inner", target)


def _pointed(btf: Btf, name: str, member: Member | None) -> int | None:
    """Return the type that ``__type(key, T)`` names; it is declared as a pointer."""
    if member is None:
        return None
    pointer = btf.resolve(member.type_id)
    if not isinstance(pointer, Pointer):
        raise btf.error(f"map {name}: its {member.name} is not declared by __type()")
    return pointer.target


def _number(btf: Btf, name: str, member: Member | None) -> int:
    """Return the number that ``__uint(max_entries, N)`` gives; 0 where it is not there.

    It is declared as a pointer to an array of that many elements; __ulong as an enum.
    """
    if member is None:
        return 0
    found = btf.resolve(member.type_id)
    if isinstance(found, Enum) and found.values:
        return found.values[0][1]
    array = btf.resolve(found.target) if isinstance(found, Pointer) else None
    if not isinstance(array, Array):
        raise btf.error(f"map {name}: its {member.name} is not declared by __uint()")
    return array.count
