"""Which structs and enums of an object a program that uses it needs, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import filterfalse

from kerneltrace_core.btf.layout import (
    ArrayLayout,
    MapLayout,
    ObjectLayout,
    Scalar,
    StructLayout,
    TypeLayout,
)
from kerneltrace_core.codegen.names import Names, class_name
from kerneltrace_core.errors import OptionError

__all__ = ["Chosen", "choose", "is_ours"]

# Maps, variables and programs of our own headers: sessions look after them.
OURS = "kt_"

POINTED = re.compile(r"(?:struct|union) (\w+) \*")


@dataclass
class Chosen:
    """Structs and enums by their class, each after what it is made of. Not thread-safe."""

    names: Names
    structs: dict[str, StructLayout] = field(default_factory=dict)
    enums: dict[str, Scalar] = field(default_factory=dict)
    # By the class: its C name, or where a type without a name is used.
    called: dict[str, str] = field(default_factory=dict)
    # The TypedDict of a class, where one is used.
    written: dict[str, str] = field(default_factory=dict)
    _classes: dict[tuple[str, TypeLayout], str] = field(default_factory=dict)

    def class_of(self, layout: StructLayout | Scalar, inside: str = "") -> str:
        """Return the class; ``inside`` names a type that has no name in C."""
        return self._classes[layout.name or inside, layout]

    def fields_of(self, layout: StructLayout, inside: str = "") -> str:
        """Return the TypedDict that a struct is written from, which the module then has."""
        name = self.class_of(layout, inside)
        if name not in self.written:
            self.written[name] = self.names.claim(f"{name}Fields")
        return self.written[name]

    def add(self, layout: TypeLayout, inside: str = "") -> None:
        """Add a type and all that it is made of."""
        while isinstance(layout, ArrayLayout):
            layout = layout.element
        called = layout.name or inside
        if (called, layout) in self._classes:
            return
        if isinstance(layout, StructLayout):
            for member in layout.fields():
                self.add(member.type, f"{called}_{member.name}")
            self.structs[self._claim(called, layout)] = layout
        elif layout.values:
            self.enums[self._claim(called, layout)] = layout

    def _claim(self, called: str, layout: TypeLayout) -> str:
        name = self.names.claim(class_name(called))
        self._classes[called, layout] = name
        self.called[name] = called
        return name


def choose(layout: ObjectLayout, names: Names, wanted: Iterable[str] = ()) -> Chosen:
    """Return the types that events, maps and variables are made of, and the ``wanted`` structs.

    Events are those with a tag; in an object that was not written with kt_event.h, what its
    global pointers point at. Raises OptionError for a wanted struct that the object lacks.
    """
    chosen = Chosen(names)
    for name in sorted({*layout.events, *_pointed_at(layout)}):
        chosen.add(layout.structs[name])
    for name in sorted(filterfalse(is_ours, layout.maps)):
        for each, described in _types_of(layout.maps[name]):
            chosen.add(described, f"{name}_{each}")
    for name in sorted(filterfalse(is_ours, layout.variables)):
        chosen.add(layout.variables[name].type, name)
    for name in wanted:
        if name not in layout.structs:
            known = ", ".join(sorted(layout.structs)) or "none"
            raise OptionError(f"--struct {name}: the object has no such struct (it has: {known})")
        chosen.add(layout.structs[name])
    return chosen


def is_ours(name: str) -> bool:
    """Tell whether a part of the object comes from our own headers."""
    return name.startswith(OURS)


def _pointed_at(layout: ObjectLayout) -> Iterator[str]:
    """Yield structs that pointers name, as in ``const struct open_event *unused;``."""
    for variable in layout.variables.values():
        if isinstance(variable.type, Scalar) and variable.type.kind == "pointer":
            match = POINTED.fullmatch(variable.type.name)
            if match is not None and match[1] in layout.structs:
                yield match[1]


def _types_of(described: MapLayout) -> Iterator[tuple[str, TypeLayout]]:
    if described.key is not None:
        yield "key", described.key
    if described.value is not None:
        yield "value", described.value
    if described.inner is not None:
        yield from _types_of(described.inner)
