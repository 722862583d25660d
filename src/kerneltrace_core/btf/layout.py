"""What a BPF object contains: structs, maps, variables, programs, events and probes."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from kerneltrace_core.btf.build import LayoutBuilder
from kerneltrace_core.btf.elf import Elf
from kerneltrace_core.btf.format import Btf, parse_btf
from kerneltrace_core.btf.kinds import Struct, Typedef
from kerneltrace_core.btf.maps import read_maps
from kerneltrace_core.btf.perf_buffers import read_perf_buffers
from kerneltrace_core.btf.placed import Placed, place_variables
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
from kerneltrace_core.btf.tags import is_mark, read_events, read_probes
from kerneltrace_core.errors import FormatError

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

# The sections of which libbpf makes maps; others hold the license, maps, or what the kernel gives.
DATA = re.compile(r"\.bss|\.data(\..+)?|\.rodata(\..+)?")
PERF_EVENT_ARRAY = 4  # enum bpf_map_type, include/uapi/linux/bpf.h
# What bpf_printk leaves behind: its text, in a static variable.
PRINTK_TEXT = ".____fmt"


class ObjectLayout:
    """Everything that an object says about itself. Read-only; thread-safe once made.

    ``structs``: the complete structs and unions by name, and anonymous ones by their typedef;
    each is worked out when it is first asked for, which may raise FormatError.
    ``events``: by name of struct, where the object was written with kt_event.h; ``probes``: the
    index of each program's counters. ``perf_buffers``: which of them each program's code names;
    empty where there is none.
    """

    def __init__(
        self,
        structs: Mapping[str, StructLayout],
        maps: Mapping[str, MapLayout],
        variables: Mapping[str, VariableLayout],
        programs: Mapping[str, ProgramLayout],
        events: Mapping[str, EventTag],
        probes: Mapping[str, int],
        perf_buffers: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ) -> None:
        self.structs = structs
        self.maps = MappingProxyType(dict(maps))
        self.variables = MappingProxyType(dict(variables))
        self.programs = MappingProxyType(dict(programs))
        self.events = MappingProxyType(dict(events))
        self.probes = MappingProxyType(dict(probes))
        self.perf_buffers = MappingProxyType(dict(perf_buffers))

    @classmethod
    def from_elf(cls, data: bytes, file: str = "the object") -> ObjectLayout:
        """Read a compiled ``.bpf.o``; ``file`` is what errors call it. Pure; milliseconds.

        Raises FormatError on malformed input, and when there is no BTF.
        """
        elf = Elf.parse(data, file)
        section = elf.section(".BTF")
        if section is None:
            raise FormatError(f"read {file}: it has no section .BTF (compile it with -g)")
        return cls._read(parse_btf(section.data, file), elf)

    @classmethod
    def from_btf(cls, btf: Btf) -> ObjectLayout:
        """Describe what BTF alone tells: no programs, and variables only if it was linked."""
        return cls._read(btf, None)

    @classmethod
    def _read(cls, btf: Btf, elf: Elf | None) -> ObjectLayout:
        builder = LayoutBuilder(btf)
        placed = place_variables(btf, elf)
        marks = [each for each in placed if is_mark(btf, each)]
        targets = {each.name: each.target for each in placed if each.section == ".maps"}
        maps = read_maps(btf, builder, targets)
        perf = [each.name for each in maps.values() if each.type == PERF_EVENT_ARRAY]
        programs = {} if elf is None else dict(_programs(elf))
        return cls(
            _Structs(btf, builder),
            maps,
            dict(_variables(btf, builder, placed)),
            programs,
            read_events(btf, marks),
            read_probes(btf, marks),
            {} if elf is None else read_perf_buffers(elf, perf, programs),
        )


class _Structs(Mapping[str, StructLayout]):
    """Structs by name, made when asked for: an object may bring much of the kernel's types."""

    def __init__(self, btf: Btf, builder: LayoutBuilder) -> None:
        self._builder = builder
        self._lock = threading.Lock()
        self._ids: dict[str, int] = {}
        for type_id, found in enumerate(btf.types):
            if isinstance(found, Struct) and found.name:
                self._ids.setdefault(found.name, type_id)
        for type_id, found in enumerate(btf.types):
            if isinstance(found, Typedef):
                target = btf.resolve(type_id)
                if isinstance(target, Struct) and not target.name:
                    self._ids.setdefault(found.name, type_id)

    def __getitem__(self, name: str) -> StructLayout:
        with self._lock:
            layout = self._builder.build(self._ids[name])
        assert isinstance(layout, StructLayout)
        return layout

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, name: object) -> bool:
        return name in self._ids


def _variables(
    btf: Btf, builder: LayoutBuilder, placed: tuple[Placed, ...]
) -> Iterator[tuple[str, VariableLayout]]:
    for each in placed:
        if not DATA.fullmatch(each.section) or is_mark(btf, each):
            continue
        if each.name.endswith(PRINTK_TEXT):
            continue
        layout = builder.build(each.target)
        # More than its type has a struct that ends with an initialised flexible array.
        if layout.size > each.size:
            raise btf.error(
                f"variable {each.name} of section {each.section} has {each.size} bytes, "
                f"its type {c_name(layout)} {layout.size}"
            )
        yield (
            each.name,
            VariableLayout(
                each.name,
                each.section,
                each.offset,
                each.size,
                layout,
                writable=not each.section.startswith(".rodata"),
            ),
        )


def _programs(elf: Elf) -> Iterator[tuple[str, ProgramLayout]]:
    for symbol in elf.symbols():
        if not symbol.is_function or symbol.is_local:
            continue
        if not 0 < symbol.section_index < len(elf.sections):
            continue
        section = elf.sections[symbol.section_index]
        if section.executable and section.name != ".text":
            yield symbol.name, ProgramLayout(symbol.name, section.name)
