"""What the kernel says about the programs of a loaded object: size, memory, runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kerneltrace_core.bpf.program import type_name

if TYPE_CHECKING:
    from kerneltrace_core.bpf.object import BpfObject

__all__ = ["ProgramInfo", "bpf_stats", "parse_memory", "program_info"]

INSTRUCTION_BYTES = 8


@dataclass(frozen=True)
class ProgramInfo:
    """A loaded program at one moment. Immutable.

    ``id`` and ``tag`` as bpftool shows them; ``name`` as the kernel has it, cut to 15 characters.
    ``run_time_ns`` and ``run_count`` grow while runs are counted, see ``bpf_stats``.
    ``recursion_misses``: runs left out because the program was running already on that CPU
    (Linux 5.12). ``loaded_ns``: CLOCK_BOOTTIME. None is what this process may not see, or the
    kernel does not know: ``instructions`` and ``jited_bytes`` without CAP_BPF,
    ``verified_instructions`` (how many the verifier walked through) before Linux 5.16,
    ``memory_bytes`` without /proc.
    """

    id: int
    tag: str
    type: int
    name: str
    loaded_ns: int
    run_time_ns: int
    run_count: int
    recursion_misses: int
    instructions: int | None = None
    jited_bytes: int | None = None
    verified_instructions: int | None = None
    memory_bytes: int | None = None

    @property
    def type_name(self) -> str:
        """The type in words: ``tracing``, ``kprobe``."""
        return type_name(self.type)

    @property
    def run_mean_ns(self) -> float | None:
        """How long a run took on average; None if none was counted."""
        return self.run_time_ns / self.run_count if self.run_count else None


def program_info(opened: BpfObject) -> dict[str, ProgramInfo]:
    """Ask for every loaded program of an object, by its name in there; two reads for each.

    Raises ClosedError.
    """
    with opened.in_use():
        return {
            program.name: _info(opened.program_fd(program.name))
            for program in opened.programs()
            if program.loads
        }


def _info(fd: int) -> ProgramInfo:
    # Not at the top: this loads libbpf.
    from kerneltrace_core._native import facts

    told = facts.program_info(fd)
    return ProgramInfo(
        id=told.id,
        tag=told.tag.hex(),
        type=told.type,
        name=told.name,
        loaded_ns=told.loaded_ns,
        run_time_ns=told.run_time_ns,
        run_count=told.run_count,
        recursion_misses=told.recursion_misses,
        instructions=told.instruction_bytes // INSTRUCTION_BYTES or None,
        jited_bytes=told.jited_bytes or None,
        verified_instructions=told.verified_instructions or None,
        memory_bytes=_memory(fd),
    )


def parse_memory(lines: Iterable[str]) -> int | None:
    """Return the bytes of memory that /proc/self/fdinfo/N tells of a program or map.

    Source: bpf_prog_show_fdinfo() of kernel/bpf/syscall.c.
    """
    for line in lines:
        name, _, value = line.partition(":")
        if name == "memlock" and value.strip().isdigit():
            return int(value)
    return None


def _memory(fd: int) -> int | None:
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as lines:
            return parse_memory(lines)
    except OSError:
        return None


@contextmanager
def bpf_stats() -> Iterator[None]:
    """Let the kernel count runs and run time inside the block: of all programs of the machine.

    Costs every run about 20 ns. Blocks may overlap, in several processes too; it ends with the
    last one, or with the process. Linux 5.8. Raises PrivilegeError without CAP_SYS_ADMIN,
    UnsupportedError.
    """
    # Not at the top: this loads libbpf.
    from kerneltrace_core._native import facts

    fd = facts.enable_stats()
    try:
        yield
    finally:
        os.close(fd)
