"""IntEnum classes of C's enums."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from kerneltrace_core.btf.layout import Scalar
from kerneltrace_core.events.naming import class_name

__all__ = ["enum_class", "enum_members", "member_of"]


@functools.cache
def enum_class(layout: Scalar) -> type[IntEnum] | None:
    """Return the IntEnum of an enum; None if it has no names, or one that Python cannot have."""
    if not layout.values:
        return None
    try:
        made = IntEnum(class_name(layout.name), list(layout.values))  # type: ignore[misc]
    except (ValueError, TypeError):  # "mro", "_sunder_"
        return None
    # Members pickle by what made them: the class is in no module.
    made.__reduce_ex__ = lambda self, _: (member_of, (layout, self.value))  # type: ignore[assignment]
    return made


def member_of(layout: Scalar, value: int) -> int:
    """Return the member of this value, or the value where the enum has none."""
    members = enum_members(enum_class(layout))
    return members.get(value, value) if members else value


def enum_members(made: type[IntEnum] | None) -> Mapping[Any, Any] | None:
    """Return a field's ``convert`` for the class: unknown values stay int."""
    return {member.value: member for member in made} if made else None
