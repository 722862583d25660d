"""What a reader of a ring does, for the real ones and for fakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

__all__ = ["CHUNK_BYTES", "NOTHING", "NO_LIMIT", "Drained", "Layout", "ReaderProtocol", "Strided"]

# What one drain takes at most: small enough to stay in the CPU's second cache until it is
# decoded, and to let the others in soon.
CHUNK_BYTES = 256 * 1024
NO_LIMIT = 2**64 - 1


class Drained(NamedTuple):
    """What one drain took.

    ``frames``: records one after the other, each u32 length, u32 origin (the CPU for perf
    buffers, else 0), payload, zeroes up to a multiple of 8; native byte order. ``discarded``:
    skipped, because the program gave them up. ``lost``: what the kernel itself reports that it
    had no space for (perf buffers). ``more``: another drain would take something now.
    """

    frames: bytes
    records: int
    discarded: int = 0
    lost: int = 0
    more: bool = False


NOTHING = Drained(b"", 0)


class Strided(NamedTuple):
    """What one drain of one type took: its records without headers, ``size`` bytes each.

    ``more``: something is left, perhaps of another type: the next is for an ordinary drain.
    """

    data: memoryview
    records: int
    discarded: int = 0
    more: bool = False


class Layout(NamedTuple):
    """Which records a strided drain takes: of just this size, and with one of the tags, if any."""

    size: int
    tag_offset: int = -1
    tag_size: int = 0
    tags: tuple[int, ...] = ()


class ReaderProtocol(Protocol):
    """Reader of one ring. Thread-safe; ``close`` may come from another thread."""

    @property
    def name(self) -> str:
        """The map's name, for messages."""

    @property
    def fd(self) -> int:
        """A descriptor that epoll finds readable when there is something; -1: use ``listen``."""

    @property
    def size_bytes(self) -> int:
        """Size of the data area."""

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""

    def drain(self, limit_bytes: int = CHUNK_BYTES, limit_records: int = NO_LIMIT) -> Drained:
        """Take what is there, up to the limits. Never blocks."""

    def drain_strided(self, layout: Layout, limit_records: int) -> Strided | None:
        """Take records of one type in a row; None where the reader has no such way."""

    def pending_bytes(self) -> int:
        """Return how many bytes wait in the ring."""

    def spin(self, microseconds: int) -> bool:
        """Look for a record for so long, keeping a CPU busy. Tells whether there is one."""

    def listen(self, wake: Callable[[], None] | None) -> None:
        """Call this from now on when something arrives: for readers without a descriptor."""

    def close(self) -> None:
        """Give everything back. May be repeated."""

    def abandon(self) -> None:
        """In a forked child: close its copies of descriptors, wait for nobody."""
