"""ThreadSeats: an entry of the region for each thread that works for requests."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable

from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.requests import layout
from kerneltrace_core.requests.engine import Region

__all__ = ["ThreadSeats"]

logger = logging.getLogger("kerneltrace")

_local = threading.local()


class _Seat:
    """Lives in a thread's local storage and ends with the thread."""

    __slots__ = ("index", "seats", "thread")

    def __init__(self, seats: ThreadSeats, index: int) -> None:
        self.seats = seats
        self.index = index
        self.thread = threading.get_ident()

    def __del__(self) -> None:
        # On another thread only when the interpreter takes everything down.
        if self.thread == threading.get_ident() and not sys.is_finalizing():
            self.seats.stand_up(self.index)


class ThreadSeats:
    """Entries of one region, handed out to threads as they first work for a request.

    ``enter(index)`` and ``leave()`` are the backend's, run on the thread itself. A thread that
    finds no entry free works unseen: its work is charged to nobody, and counted in ``refused``.
    Thread-safe.
    """

    def __init__(
        self,
        enter: Callable[[int], None],
        leave: Callable[[], None],
        memory: memoryview,
    ) -> None:
        self._enter = enter
        self._leave = leave
        self._memory = memory
        self._free: deque[int] = deque(range(layout.THREADS))
        self.region: Region | None = None
        self.refused = 0
        self.closed = False

    def sit_down(self) -> None:
        """Register the calling thread; the region calls this when it meets a new one."""
        region = self.region
        if region is None:
            return
        # Given up first: a seat that goes when the new one replaces it would take the thread's
        # new registration with it.
        _local.__dict__.pop("seat", None)
        try:
            index = -1 if self.closed else self._free.popleft()
        except IndexError:
            index = -1
        if index < 0:
            self._refuse(region, "all entries are taken")
            return
        start = index * layout.THREAD_BYTES
        self._memory[start : start + layout.THREAD_BYTES] = bytes(layout.THREAD_BYTES)
        try:
            self._enter(index)
        except (KernelTraceError, OSError) as error:
            self._free.append(index)
            self._refuse(region, str(error))
            return
        region.bind(index)
        _local.seat = _Seat(self, index)

    def stand_up(self, index: int) -> None:
        """Give the calling thread's entry back; after this the kernel does not know the thread."""
        if self.closed or self.region is None:
            return
        self.region.unbind()
        try:
            self._leave()
        except (KernelTraceError, OSError) as error:
            # The kernel may still charge the thread through this entry: nobody else gets it.
            logger.debug("thread entry %d is lost: %s", index, error)
            return
        self._free.append(index)

    def _refuse(self, region: Region, cause: str) -> None:
        region.bind(-1)
        if not self.refused and not self.closed:
            logger.warning(
                "register thread %s: %s; its work is charged to no request",
                threading.current_thread().name,
                cause,
            )
        self.refused += 1

    def close(self) -> None:
        """Let go: seats that are given up later are not reported to the backend."""
        self.closed = True
