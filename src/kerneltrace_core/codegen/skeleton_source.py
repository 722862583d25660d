"""The source of a session whose programs, maps and variables are attributes with types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kerneltrace_core.btf.layout import ArrayLayout, ObjectLayout, StructLayout, VariableLayout
from kerneltrace_core.codegen.annotate import Annotator
from kerneltrace_core.codegen.choose import is_ours
from kerneltrace_core.codegen.map_types import map_annotation
from kerneltrace_core.codegen.names import Names, attribute_name, module_class_name, unhide

__all__ = ["Skeleton"]


@dataclass
class Skeleton:
    """Write the classes about a whole object. Not thread-safe."""

    file: str
    layout: ObjectLayout
    annotator: Annotator
    aliases: dict[str, str]

    def __post_init__(self) -> None:
        names = self.annotator.chosen.names
        prefix = module_class_name(self.file)
        self._maps = names.claim(f"{prefix}Maps")
        self._map_name = names.claim(f"{prefix}Map")
        self._variables = names.claim(f"{prefix}Variables")
        self._values = names.claim(f"{prefix}Values")
        self._programs = names.claim(f"{prefix}Programs")
        self._program_name = names.claim(f"{prefix}Program")
        self._session = names.claim(f"{prefix}Session")

    def blocks(self) -> Iterator[Iterator[str]]:
        """Yield the lines of each class; what a class needs comes before it."""
        if maps := _ours_left_out(self.layout.maps):
            yield self._names_source(self._map_name, sorted(maps))
            yield self._maps_source(maps)
        if variables := _ours_left_out(self.layout.variables):
            yield self._values_source(variables)
            yield self._variables_source(variables)
        if programs := sorted(_ours_left_out(self.layout.programs)):
            yield self._names_source(self._program_name, programs)
            yield self._programs_source(programs)
        yield self._session_source(bool(maps), bool(variables), bool(programs))

    def _names_source(self, name: str, values: list[str]) -> Iterator[str]:
        use = self.annotator.use
        shown = ", ".join(f'"{value}"' for value in values)
        yield f"{name}: {use('TypeAlias')} = {use('Literal')}[{shown}]"

    def _maps_source(self, maps: Mapping[str, object]) -> Iterator[str]:
        use = self.annotator.use
        attributes = _attributes(sorted(maps))
        yield f"class {self._maps}:"
        yield f'    """The maps of {self.file}, each opened when it is first asked for."""'
        yield ""
        yield f"    def __init__(self, session: {use('Session')}) -> None:"
        yield "        self._session = session"
        for attribute, name in attributes.items():
            annotation = map_annotation(self.layout.maps[name], self.annotator)
            yield from self._getter(attribute, annotation, "maps", name, attributes)

    def _variables_source(self, variables: Mapping[str, VariableLayout]) -> Iterator[str]:
        use = self.annotator.use
        attributes = _attributes(sorted(variables))
        yield f"class {self._variables}:"
        yield f'    """The global variables of {self.file}, live in the kernel\'s memory.'
        yield ""
        yield "    Structs are read here, and written by the session's ``variables``."
        yield '    """'
        yield ""
        yield f"    def __init__(self, session: {use('Session')}) -> None:"
        yield "        self._session = session"
        for attribute, name in attributes.items():
            variable = variables[name]
            annotation = self.annotator.value(variable.type, name)
            yield from self._getter(attribute, annotation, "variables", name, attributes)
            if variable.writable and not _has_struct(variable):
                shown = unhide(annotation, attributes, self.aliases)
                yield ""
                yield f"    @{attribute}.setter"
                yield f"    def {attribute}(self, value: {shown}) -> None:"
                yield f'        self._session.variables["{name}"] = value'

    def _getter(
        self, attribute: str, annotation: str, where: str, name: str, hidden: Mapping[str, str]
    ) -> Iterator[str]:
        shown = unhide(annotation, hidden, self.aliases)
        yield ""
        yield "    @property"
        yield f"    def {attribute}(self) -> {shown}:"
        found = f'self._session.{where}["{name}"]'
        yield f'        return {self.annotator.use("cast")}("{annotation}", {found})'

    def _values_source(self, variables: Mapping[str, VariableLayout]) -> Iterator[str]:
        # Not as a class: the name of a static variable may have a dot.
        use = self.annotator.use
        yield f"{self._values} = {use('TypedDict')}("
        yield f'    "{self._values}",'
        yield "    {"
        for name in sorted(variables):
            annotation = self.annotator.written(variables[name].type, name, or_read=True)
            yield f'        "{name}": "{annotation}",'
        yield "    },"
        yield "    total=False,"
        yield ")"

    def _programs_source(self, programs: list[str]) -> Iterator[str]:
        final = self.annotator.use("Final")
        yield f"class {self._programs}:"
        yield f'    """The programs of {self.file}: what a probe takes as its ``program``."""'
        yield ""
        for attribute, name in _attributes(programs).items():
            yield f'    {attribute}: {final} = "{name}"'

    def _session_source(self, maps: bool, variables: bool, programs: bool) -> Iterator[str]:
        use = self.annotator.use
        given = []
        if programs:
            given.append(("programs", f"{use('Sequence')}[{self._program_name}]"))
        if variables:
            given.append(("variables", self._values))
        if maps:
            given.append(("map_sizes", f"{use('Mapping')}[{self._map_name}, int]"))
        yield f"class {self._session}({use('Session')}):"
        yield f'    """A session of {self.file}. Options: see Session."""'
        yield ""
        yield "    def __init__("
        yield "        self,"
        yield f"        object: str | {use('Path')} | bytes,"
        yield f"        probes: {use('Sequence')}[{use('Probe')}] | str = (),"
        if given:
            yield "        *,"
        for name, annotation in given:
            yield f"        {name}: {annotation} | None = None,"
        yield f"        **options: {use('Any')},"
        yield "    ) -> None:"
        for name, _ in given:
            yield f"        if {name} is not None:"
            yield f'            options["{name}"] = {name}'
        yield "        super().__init__(object, probes, **options)"
        for what, wanted, made in (
            ("maps", maps, self._maps),
            ("variables", variables, self._variables),
        ):
            if wanted:
                yield ""
                yield "    @property"
                yield f"    def typed_{what}(self) -> {made}:"
                yield f'        """The {what}, as attributes that a type checker knows."""'
                yield f"        return {made}(self)"


def _ours_left_out(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if not is_ours(name)}


def _attributes(names: list[str]) -> dict[str, str]:
    """Return the names by the attribute of each."""
    taken = Names({"_session"})
    return {taken.claim(attribute_name(name)): name for name in names}


def _has_struct(variable: VariableLayout) -> bool:
    layout = variable.type
    while isinstance(layout, ArrayLayout):
        layout = layout.element
    return isinstance(layout, StructLayout)
