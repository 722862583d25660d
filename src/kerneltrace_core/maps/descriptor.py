"""A map's descriptor: used only while it is open, and never by a forked child."""

from __future__ import annotations

import os
import threading
import weakref

from kerneltrace_core.errors import ClosedError
from kerneltrace_core.maps.calls import MapCalls

__all__ = ["Descriptor"]

_open_descriptors: weakref.WeakSet[Descriptor] = weakref.WeakSet()
_watching_forks = False
_lock = threading.RLock()


class Descriptor:
    """Own a descriptor: ``with descriptor as fd:`` keeps it open for the block. Thread-safe.

    ``close`` lets no new use begin, and closes when the last one has ended: the number can be
    another file's only then. In a forked child the copy is closed at once. Raises ClosedError.
    """

    def __init__(self, fd: int, what: str, calls: MapCalls) -> None:
        self._calls = calls
        self._fd = fd  # at once: a signal handler may raise at any of the next lines
        self._pid = os.getpid()
        self._what = what
        # A signal's handler may come in between and use the same map.
        self._lock = threading.RLock()
        self._users = 0
        self._closing = False
        _remember(self)

    @property
    def closed(self) -> bool:
        """Whether it cannot be used: closed, or the parent's."""
        return self._closing or self._pid != os.getpid()

    def __enter__(self) -> int:
        if self._pid != os.getpid():
            raise ClosedError(
                f"use {self._what}: it is the parent's (pid {self._pid}), and this is a forked "
                "child (open it here)"
            )
        with self._lock:
            if self._closing:
                raise ClosedError(f"use {self._what}: it is closed")
            self._users += 1
            return self._fd

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            self._close_unused()

    def close(self) -> None:
        """End its use; may be repeated, from any thread, and does not wait."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closing = True
            self._close_unused()

    def _close_unused(self) -> None:
        if self._closing and self._users == 0 and self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._calls.close(fd)

    def abandon(self) -> None:
        """In a child just forked: close this process's copy, whoever used it in the parent."""
        fd, self._fd = self._fd, -1
        self._closing = True
        self._lock = threading.RLock()
        if fd >= 0:
            self._calls.close(fd)

    def __del__(self) -> None:
        # Nobody uses it any more, whatever a signal handler's exception left undone.
        fd = getattr(self, "_fd", -1)
        if fd >= 0 and getattr(self, "_pid", None) in (None, os.getpid()):
            self._fd = -1
            self._calls.close(fd)


def _remember(descriptor: Descriptor) -> None:
    global _watching_forks
    with _lock:
        _open_descriptors.add(descriptor)
        if not _watching_forks and hasattr(os, "register_at_fork"):
            _watching_forks = True
            os.register_at_fork(after_in_child=_abandon)


def _abandon() -> None:
    global _lock
    _lock = threading.RLock()
    for descriptor in list(_open_descriptors):
        descriptor.abandon()
