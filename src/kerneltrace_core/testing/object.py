"""FakeObject: what of a BPF object there is without a kernel."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.btf.elf import Elf
from kerneltrace_core.btf.layout import ObjectLayout, ProgramLayout, VariableLayout
from kerneltrace_core.errors import ClosedError
from kerneltrace_core.session import probes
from kerneltrace_core.session.info import ProgramInfo
from kerneltrace_core.session.kernel_probes import KPROBE
from kerneltrace_core.session.sections import LEFT_TO_LIBBPF

__all__ = ["FakeObject"]

KINDS = (
    *(probes.Tracepoint, probes.RawTracepoint, probes.BtfTracepoint, probes.Fentry, probes.Fexit),
    *(probes.FmodRet, probes.Lsm, probes.Kprobe, probes.Kretprobe, probes.Uprobe),
    *(probes.Uretprobe, probes.Usdt, probes.PerfEvent, probes.Xdp, probes.Tc, probes.Cgroup),
)
SYSCALL = 31  # BPF_PROG_TYPE_SYSCALL of include/uapi/linux/bpf.h
# What the kernel takes a program of a section for: its type, and its expected attach type.
SECTIONS = {
    "syscall": (SYSCALL, 0),
    **dict.fromkeys(LEFT_TO_LIBBPF, (KPROBE, 0)),
    **{
        section: (min(kind.program_types), min(kind.attach_types, default=0))
        for kind in KINDS
        for section in kind.sections
    },
}
TAG_DIGITS = 16
NAME_CHARACTERS = 15

_ids = itertools.count(1)


class FakeObject:
    """Programs, maps' sizes and data sections as the file has them, to be chosen and changed.

    As BpfObject is, before and after load; nothing is loaded.
    """

    def __init__(self, data: bytes, name: str, layout: ObjectLayout) -> None:
        self.name = name
        self.closed = False
        self.map_sizes: dict[str, int] = {}
        self._programs = list(layout.programs.values())
        self._chosen = {each.name for each in self._programs if not each.section.startswith("?")}
        self._infos: dict[str, ProgramInfo] = {}
        self._sections: dict[str, bytearray] = {}
        elf = Elf.parse(data, name)
        for variable in layout.variables.values():
            if variable.section not in self._sections:
                found = elf.section(variable.section)
                self._sections[variable.section] = bytearray(b"" if found is None else found.data)
            # .bss takes no room in the file.
            section = self._sections[variable.section]
            section.extend(bytes(max(0, variable.offset + variable.size - len(section))))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Do nothing. Raises ClosedError."""
        if self.closed:
            raise ClosedError(f"use BPF object {self.name}: it is closed")
        yield

    def programs(self) -> tuple[ProgramFacts, ...]:
        """Return what the object says about its programs."""
        return tuple(self._facts(each) for each in self._programs)

    def _facts(self, program: ProgramLayout) -> ProgramFacts:
        prefix = program.section.removeprefix("?").partition("/")[0]
        kind, attach_type = SECTIONS.get(prefix, (0, 0))
        loads = program.name in self._chosen
        return ProgramFacts(program.name, program.section, kind, attach_type, loads)

    def select(self, programs: set[str]) -> None:
        """Take only these programs for loaded."""
        self._chosen = set(programs)

    def resize_map(self, name: str, entries: int) -> None:
        """Set a map's number of entries."""
        self.map_sizes[name] = entries

    def initial_data(self, section: str) -> bytearray:
        """Return the memory of a data section."""
        return self._sections[section]

    def memory(self, layout: VariableLayout) -> bytearray:
        """Return the memory of a variable's section."""
        return self._sections[layout.section]

    def program_info(self) -> dict[str, ProgramInfo]:
        """Describe the programs that would be loaded; they have not run."""
        with self.in_use():
            for each in self.programs():
                if each.loads and each.name not in self._infos:
                    self._infos[each.name] = _info(each)
            return dict(self._infos)

    def close(self) -> None:
        """Refuse further use; may be repeated."""
        self.closed = True

    abandon = close


def _info(program: ProgramFacts) -> ProgramInfo:
    number = next(_ids)
    return ProgramInfo(
        id=number,
        tag=f"{number:0{TAG_DIGITS}x}",
        type=program.type,
        name=program.name[:NAME_CHARACTERS],
        loaded_ns=time.monotonic_ns(),
        run_time_ns=0,
        run_count=0,
        recursion_misses=0,
    )
