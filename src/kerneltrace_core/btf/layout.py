"""What a BPF object contains: structs, maps, variables, programs, events and probes."""

from __future__ import annotations

from collections.abc import Mapping

from kerneltrace_core.btf.shapes import (
    ArrayLayout,
    EventTag,
    FieldLayout,
    MapLayout,
    ProgramLayout,
    Scalar,
    ScalarKind,
    StructLayout,
    TypeLayout,
    VariableLayout,
    c_name,
)

__all__ = [
    "ArrayLayout",
    "EventTag",
    "FieldLayout",
    "MapLayout",
    "ObjectLayout",
    "ProgramLayout",
    "Scalar",
    "ScalarKind",
    "StructLayout",
    "TypeLayout",
    "VariableLayout",
    "c_name",
]


class ObjectLayout:
    """Everything that an object says about itself. Read-only; thread-safe."""

    def __init__(
        self,
        structs: Mapping[str, StructLayout],
        maps: Mapping[str, MapLayout],
        variables: Mapping[str, VariableLayout],
        programs: Mapping[str, ProgramLayout],
        events: Mapping[str, EventTag],
        probes: Mapping[str, int],
    ) -> None:
        self.structs = structs
        self.maps = maps
        self.variables = variables
        self.programs = programs
        self.events = events
        self.probes = probes
