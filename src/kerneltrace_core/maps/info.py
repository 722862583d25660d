"""What the kernel says about a map."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from kerneltrace_core.maps.kinds import MapFlags, MapType

__all__ = ["MapInfo"]

ACCESS: dict[int, Literal["read", "write", "both"]] = {0: "read", 1: "write", 2: "both"}
OCTAL = re.compile("[0-7]+")


@dataclass(frozen=True)
class MapInfo:
    """A map at one moment. Immutable.

    ``name``: as the kernel has it, cut to 15 characters. ``value_size``: of one CPU's value where
    a map is per CPU. ``memory_bytes``: what the kernel charges for it, 0 for
    a ring buffer before Linux 6.4. ``access``: what this
    process may do through its descriptor. These two and ``frozen`` are None where /proc cannot be
    read.
    """

    type: MapType | int
    id: int
    name: str
    key_size: int
    value_size: int
    max_entries: int
    flags: MapFlags
    memory_bytes: int | None = None
    frozen: bool | None = None
    access: Literal["read", "write", "both"] | None = None

    def with_fdinfo(self, lines: Iterable[str]) -> MapInfo:
        """Add what the lines of /proc/self/fdinfo/N say.

        Source: bpf_map_show_fdinfo() of kernel/bpf/syscall.c; ``flags`` are open(2)'s, octal.
        """
        found = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        memory, frozen = found.get("memlock", ""), found.get("frozen", "")
        flags = found.get("flags", "")
        return replace(
            self,
            memory_bytes=int(memory) if memory.isdigit() else None,
            frozen=frozen != "0" if frozen.isdigit() else None,
            access=ACCESS.get(int(flags, 8) & 3) if OCTAL.fullmatch(flags) else None,
        )
