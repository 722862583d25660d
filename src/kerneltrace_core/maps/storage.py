"""Local storage: a value for each task, socket, file or control group that programs gave one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

from kerneltrace_core.errors import OptionError, UnsupportedError
from kerneltrace_core.maps.kinds import MapType
from kerneltrace_core.maps.mapping import KeyedMap
from kerneltrace_core.maps.nested import descriptor_of

__all__ = ["Owner", "StorageMap"]

V = TypeVar("V")

# A descriptor, or what has a fileno().
Owner = Any

OWNERS: dict[MapType | int, str] = {
    MapType.TASK_STORAGE: "a pidfd (os.pidfd_open)",
    MapType.SK_STORAGE: "a socket",
    MapType.INODE_STORAGE: "an open file",
    MapType.CGRP_STORAGE: "an open folder of cgroup2",
}


class StorageMap(KeyedMap[Owner, V]):
    """A value by its owner's descriptor: a pidfd, socket, file, or cgroup folder.

    The kernel lists no owners: there is no iteration and no ``len``. ``process`` reads by pid.
    Task storage is a thread's; a pidfd names a process's first one. Linux 5.11 for tasks, 5.2
    for sockets, 5.10 for files, 6.2 for control groups.
    """

    def _encode_key(self, key: Any) -> bytes:
        if isinstance(key, bytes | bytearray | memoryview):
            return self._key.encode(key)
        try:
            return descriptor_of(key)
        except OptionError as error:
            wanted = OWNERS.get(self.type, "a descriptor")
            raise OptionError(f"{error}; it takes {wanted}") from None

    def process(self, pid: int) -> V:
        """Return the value of a process's first thread. Raises MapKeyError if it has none.

        Raises ProcessLookupError if there is no such process, UnsupportedError where Python or
        the kernel has no pidfd_open (Linux 5.3).
        """
        if self.type != MapType.TASK_STORAGE:
            self._cannot("read by pid", "it is no task storage")
        opener = getattr(os, "pidfd_open", None)
        if opener is None:
            raise UnsupportedError(f"read map {self.name}: this Python has no os.pidfd_open")
        pidfd = opener(pid)
        try:
            data = self._lookup(self._encode_key(pidfd))
        finally:
            os.close(pidfd)
        if data is None:
            raise self._missing("read", pid)
        return self._decode_value(data)

    def __iter__(self) -> Iterator[Owner]:
        self._unlisted()

    def __len__(self) -> int:
        self._unlisted()

    def __bool__(self) -> bool:
        return True

    def _chunks(self) -> Iterator[Any]:
        self._unlisted()

    def clear(self) -> None:
        """Refuse: the kernel lists no owners."""
        self._unlisted()

    def drain(self) -> Iterator[Any]:
        """Refuse: the kernel lists no owners."""
        self._unlisted()

    def _unlisted(self) -> NoReturn:
        self._cannot("list", "the kernel does not list who has a value in local storage")
