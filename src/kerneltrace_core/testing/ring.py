"""FakeRing: a ring that a test fills, read as the kernel's are."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

from kerneltrace_core.errors import ClosedError
from kerneltrace_core.ring.frames import make_frame
from kerneltrace_core.ring.protocol import CHUNK_BYTES, NO_LIMIT, Drained, Layout, Strided

__all__ = ["FakeRing"]


class FakeRing:
    """Stand in for a RingReader. Thread-safe; any operating system.

    ``submit`` is what a program in the kernel would do: it wakes who sleeps, and returns False
    and counts in ``refused`` when the ring is full. ``pollable``: have a descriptor for epoll
    (Linux); without it readers are woken through ``listen``.
    """

    def __init__(
        self, name: str = "events", size_bytes: int = 1 << 20, *, pollable: bool = False
    ) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.closed = False
        self.refused = 0
        self.drains = 0
        # Reentrant: a collection of garbage may close it in the midst of a drain.
        self._lock = threading.RLock()
        self._frames: deque[bytes | None] = deque()
        self._used = 0
        self._wake: Callable[[], None] | None = None
        self._error: Exception | None = None
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if pollable else -1

    @property
    def fd(self) -> int:
        """A descriptor that epoll finds readable after each submit, or -1."""
        return self._fd

    def submit(self, *payloads: bytes, origin: int = 0) -> bool:
        """Put records into the ring; tell whether there was space for all."""
        return self._put([make_frame(payload, origin) for payload in payloads])

    def discard(self) -> bool:
        """Put a record into the ring that its program gave up."""
        return self._put([None])

    def fail(self, error: Exception) -> None:
        """Let every later drain raise this, and wake the readers."""
        with self._lock:
            self._error = error
        self._notify()

    def _put(self, frames: list[bytes | None]) -> bool:
        taken = True
        with self._lock:
            for frame in frames:
                size = 8 if frame is None else len(frame)
                if self._used + size > self.size_bytes:
                    self.refused += 1
                    taken = False
                else:
                    self._frames.append(frame)
                    self._used += size
        self._notify()
        return taken

    def _notify(self) -> None:
        if self._fd >= 0:
            os.eventfd_write(self._fd, 1)
        elif self._wake is not None:
            self._wake()

    def drain(self, limit_bytes: int = CHUNK_BYTES, limit_records: int = NO_LIMIT) -> Drained:
        """Take records as frames. Raises what `fail` was given, ClosedError after close."""
        taken: list[bytes] = []
        size = discarded = 0
        with self._lock:
            if self.closed:
                raise ClosedError(f"drain ring {self.name}: it is closed")
            if self._error is not None:
                raise self._error
            self.drains += 1
            while self._frames:
                frame = self._frames[0]
                if frame is None:
                    discarded += 1
                elif len(taken) == limit_records or (taken and size + len(frame) > limit_bytes):
                    break
                else:
                    taken.append(frame)
                    size += len(frame)
                self._used -= 8 if frame is None else len(frame)
                self._frames.popleft()
            more = bool(self._frames)
        return Drained(b"".join(taken), len(taken), discarded, 0, more)

    def drain_strided(self, layout: Layout, limit_records: int) -> Strided | None:
        """Return None: records come as frames."""

    def pending_bytes(self) -> int:
        """Return how many bytes wait."""
        return self._used

    def spin(self, microseconds: int) -> bool:  # noqa: ARG002
        """Return whether there is something; it does not spin."""
        return self._used > 0

    def listen(self, wake: Callable[[], None] | None) -> None:
        """Call this after each submit, if there is no descriptor."""
        self._wake = wake

    def close(self) -> None:
        """Refuse further use; may be repeated."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Do so without the lock, which in a forked child nobody may give back."""
        if not self.closed and self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self.closed = True
