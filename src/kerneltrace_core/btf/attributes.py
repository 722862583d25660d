"""Fields of a struct as attributes, however a name is made of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["each_once"]


def each_once(names: Iterable[str], attribute_of: Callable[[str], str]) -> list[str]:
    """Return each name's attribute; one that was made, and is taken, gets more underscores."""
    fields = list(names)
    taken = set(fields)
    found = []
    for name in fields:
        attribute = attribute_of(name)
        while attribute != name and attribute in taken:
            attribute += "_"
        taken.add(attribute)
        found.append(attribute)
    return found
