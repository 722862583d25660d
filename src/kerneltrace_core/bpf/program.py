"""ProgramFacts: what an object says about one of its programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Configurable", "ProgramFacts", "Programs", "type_name"]

# enum bpf_prog_type, include/uapi/linux/bpf.h.
TYPES = {
    1: "socket filter",
    2: "kprobe",
    3: "tc classifier",
    4: "tc action",
    5: "tracepoint",
    6: "XDP",
    7: "perf event",
    8: "cgroup skb",
    9: "cgroup socket",
    13: "socket operations",
    14: "socket skb",
    15: "cgroup device",
    16: "socket message",
    17: "raw tracepoint",
    18: "cgroup socket address",
    21: "sk_reuseport",
    22: "flow dissector",
    23: "cgroup sysctl",
    24: "writable raw tracepoint",
    25: "cgroup socket option",
    26: "tracing",
    27: "struct_ops",
    28: "extension",
    29: "LSM",
    30: "socket lookup",
    31: "syscall",
    32: "netfilter",
}


def type_name(number: int) -> str:
    """Name a program type; one newer than this module by its number."""
    return TYPES.get(number, f"type {number}")


@dataclass(frozen=True)
class ProgramFacts:
    """A program's ``name`` and ``section``, and the kernel's numbers for what it is. Immutable.

    ``attach_type`` is the expected attach type, 0 where none is; ``loads``: it is not left out
    at load; ``attach_target``: the kernel function, tracepoint or hook that it was told to be
    for, None if its section decides.
    """

    name: str
    section: str
    type: int
    attach_type: int
    loads: bool
    attach_target: str | None = None

    @property
    def prefix(self) -> str:
        """Return the section up to its first slash: ``tp_btf`` of ``tp_btf/sched_switch``."""
        return self.section.removeprefix("?").partition("/")[0]

    @property
    def section_target(self) -> str:
        """Return what the section has behind its first slash, which may be nothing."""
        return self.section.partition("/")[2]

    def __str__(self) -> str:
        return f'{self.name} (SEC("{self.section}"))'


class Programs(Protocol):
    """Whatever has programs: an object that libbpf has opened, or one of a test."""

    name: str

    def programs(self) -> tuple[ProgramFacts, ...]:
        """Return what it says about its programs, in the order of their sections."""


class Configurable(Programs, Protocol):
    """An object before it is loaded."""

    def select(self, programs: set[str]) -> None:
        """Load only these programs."""

    def resize_map(self, name: str, entries: int) -> None:
        """Set a map's number of entries."""

    def initial_data(self, section: str) -> bytearray | memoryview:
        """Return the memory of a data section as load will find it, to be changed."""
