"""C names as Python names."""

from __future__ import annotations

import keyword
from collections.abc import Iterable

from kerneltrace_core.btf.attributes import each_once

__all__ = ["TAKEN", "class_name", "field_name", "field_names"]

# What every event has: a field of that name would hide it.
TAKEN = frozenset({"as_dict", "from_bytes", "origin", "_exact_", "_fields_", "_reduce_", "_size_"})


def field_name(name: str) -> str:
    """Return the attribute for a C field: keywords and what events have get a trailing ``_``."""
    reserved = keyword.iskeyword(name) or name in TAKEN
    dunder = len(name) > 4 and name.startswith("__") and name.endswith("__")
    return f"{name}_" if reserved or dunder else name


def field_names(names: Iterable[str]) -> list[str]:
    """Return the attributes for the fields of one struct, in their order, each given once.

    Beside a field ``class_`` the keyword ``class`` gets one underscore more.
    """
    return each_once(names, field_name)


def class_name(name: str) -> str:
    """Return the class for a C struct, union or enum: ``open_event`` is ``OpenEvent``."""
    words = [word for word in name.split("_") if word]
    joined = "".join(word[0].upper() + word[1:] for word in words) or "Unnamed"
    if keyword.iskeyword(joined) or joined[0].isdigit():
        return f"_{joined}"
    return joined
