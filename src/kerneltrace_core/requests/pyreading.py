"""A reading of the twin's: a record's block, live until it is frozen."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerneltrace_core.requests.measures import Measures
    from kerneltrace_core.requests.pyrecord import Record

__all__ = ["Reading", "difference"]


class Reading:
    """A record's block, live until it is frozen: what KernelStats is made of."""

    __slots__ = ("__weakref__", "_block", "_measures", "_phase", "_whole", "record")

    def __init__(self, record: Record | None, measures: Measures) -> None:
        self.record = record
        self._measures = measures
        self._block: bytes | None = None
        self._whole: bytes | None = None
        self._phase = "response"

    def mark(self) -> None:
        """End the response phase now; later calls do nothing."""
        if self._block is None and self.record is not None:
            self._block = self.record.mark()

    def freeze(self, whole: bytes) -> None:
        """Take the final block."""
        self._whole = whole
        if self._block is None:
            self._block = whole

    def finish(self) -> None:
        """Close the record and freeze its final block; a second call does nothing."""
        record = self.record
        if record is not None:
            self.freeze(record.close())
            self.record = None


def difference(earlier: bytes, later: bytes, kept: bytes) -> bytes:
    """Subtract a block from a later one, but for the words that are kept.

    The later one's word is taken also where it is smaller, as no counter is.
    """
    if not len(earlier) == len(later) == 8 * len(kept):
        raise ValueError("subtract blocks: they are not of one size")
    words = Struct(f"={len(kept)}Q")
    return words.pack(
        *(
            after if keep or after < before else after - before
            for before, after, keep in zip(
                words.unpack(earlier), words.unpack(later), kept, strict=True
            )
        )
    )
