"""What the kernel says about a map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kerneltrace_core.maps.kinds import MapFlags, MapType

__all__ = ["MapInfo", "parse_fdinfo"]


@dataclass(frozen=True)
class MapInfo:
    """A map at one moment. Immutable.

    ``name``: as the kernel has it, cut to 15 characters. ``value_size``: of one CPU's value where
    a map is per CPU. ``memory_bytes``: what the kernel charges for it. It and ``frozen`` are None
    where /proc cannot be read.
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


def parse_fdinfo(lines: Iterable[str]) -> tuple[int | None, bool | None]:
    """Return memory in bytes and whether it is frozen, of /proc/self/fdinfo/N of a map.

    Source: bpf_map_show_fdinfo() of kernel/bpf/syscall.c.
    """
    found = {
        name: value.strip() for name, _, value in (line.partition(":") for line in lines) if value
    }
    memory, frozen = found.get("memlock", ""), found.get("frozen", "")
    return (
        int(memory) if memory.isdigit() else None,
        frozen != "0" if frozen.isdigit() else None,
    )
