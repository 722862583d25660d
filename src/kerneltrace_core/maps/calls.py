"""The system calls that maps are made of: a protocol, so that a test can answer them."""

# ruff: noqa: D102 - what each does is said where it is implemented
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from kerneltrace_core.errors import OptionError

if TYPE_CHECKING:
    import mmap

    from kerneltrace_core._native.map_records import Batch, RawInfo

__all__ = ["KernelCalls", "MapCalls"]


class MapCalls(Protocol):
    """What maps ask of the kernel. Descriptors are numbers; refusals are OSError with errno.

    See kerneltrace_core._native.maps for each. ``duplicate`` returns a second descriptor of
    the same map, OptionError if it is none of a map; ``fdinfo`` the lines of /proc, none if it
    cannot be read.
    """

    def lookup(self, fd: int, key: bytes | None, size: int, flags: int = 0) -> bytes | None: ...
    def contains(self, fd: int, value: bytes) -> bool: ...
    def update(self, fd: int, key: bytes | None, value: bytes, flags: int = 0) -> None: ...
    def delete(self, fd: int, key: bytes) -> bool: ...
    def take(self, fd: int, key: bytes | None, size: int) -> bytes | None: ...
    def next_key(self, fd: int, key: bytes | None, size: int) -> bytes | None: ...
    def read_batch(
        self,
        fd: int,
        start: bytes | None,
        count: int,
        key_size: int,
        value_size: int,
        *,
        take: bool = False,
        flags: int = 0,
    ) -> Batch: ...
    def info(self, fd: int) -> RawInfo: ...
    def fdinfo(self, fd: int) -> list[str]: ...
    def create(
        self,
        type: int,  # noqa: A002 - the kernel's own word for it
        name: str,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
        inner_fd: int | None = None,
    ) -> int: ...
    def freeze(self, fd: int) -> None: ...
    def pin(self, fd: int, path: str) -> None: ...
    def open_pinned(self, path: str, *, read_only: bool = False) -> int: ...
    def open_id(self, map_id: int) -> int: ...
    def possible_cpus(self) -> int: ...
    def map_memory(self, fd: int, size: int, *, writable: bool) -> mmap.mmap: ...
    def duplicate(self, fd: int) -> int: ...
    def close(self, fd: int) -> None: ...


class KernelCalls:
    """Ask the running kernel. Thread-safe; holds nothing."""

    def __init__(self) -> None:
        # Not at the top: this loads libbpf, and a description of maps needs none.
        from kerneltrace_core._native import lib, maps

        self.lookup = maps.lookup
        self.contains = maps.contains
        self.update = maps.update
        self.delete = maps.delete
        self.take = maps.take
        self.next_key = maps.next_key
        self.read_batch = maps.read_batch
        self.info = maps.info
        self.create = maps.create
        self.freeze = maps.freeze
        self.pin = maps.pin
        self.open_pinned = maps.open_pinned
        self.open_id = maps.open_id
        self.possible_cpus = lib.possible_cpus

    def fdinfo(self, fd: int) -> list[str]:
        """Return what /proc says of a descriptor; nothing where it is not there."""
        try:
            with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as lines:
                return list(lines)
        except OSError:
            return []

    def map_memory(self, fd: int, size: int, *, writable: bool) -> mmap.mmap:
        """Map the first bytes of a map."""
        import mmap

        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=access)

    def duplicate(self, fd: int) -> int:
        """Return a second descriptor, not inherited by programs that are executed."""
        told = self.fdinfo(fd)
        # A program's description has the same beginning as a map's, and would be misread as one.
        if told and not any(line.startswith("map_type:") for line in told):
            raise OptionError(f"open map: descriptor {fd} is not one of a map")
        return os.dup(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)
