"""What became of every record of a ring, and how long its drains took."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kerneltrace_core.ring.protocol import Drained, Strided

if TYPE_CHECKING:
    from kerneltrace_core.maps.histogram import Histogram
    from kerneltrace_core.session.consumer import ConsumerCounts
    from kerneltrace_core.session.overflow import Queue

__all__ = ["BUCKETS", "RingCounts"]

# Bucket i counts drains shorter than 2**i ns, and not shorter than the bucket before; the last
# one has all that are longer.
BUCKETS = 36


@dataclass
class RingCounts:
    """What became of the records of a ring, and its drains. Plain numbers.

    ``records``: all that were drained. Each is one of: ``unknown`` (its tag is none of the
    object's), ``malformed`` (its size is not its type's), ``unclaimed`` (nobody reads its type),
    or one that somebody reads. With one reader of each type, the last kind is
    ``delivered + waiting + dropped + abandoned``; with several, each of them counts it. A reader
    of raw records reads every type; the unknown and the malformed it gets as well.

    ``dropped``: a reader's queue was full; ``abandoned``: it was closed before it asked. A reader
    that was forgotten instead of closed keeps what it had in hand as ``delivered``.
    ``discarded``: given up by the program itself, no loss. ``lost``: no space in a perf buffer;
    that of a ring buffer only the program can count. ``drain_ns_buckets``: see BUCKETS.
    """

    records: int = 0
    size_bytes: int = 0
    discarded: int = 0
    lost: int = 0
    unknown: int = 0
    malformed: int = 0
    unclaimed: int = 0
    delivered: int = 0
    waiting: int = 0
    dropped: int = 0
    abandoned: int = 0
    consumers: int = 0
    drains: int = 0
    drain_ns: int = 0
    drain_ns_max: int = 0
    drain_ns_buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    @property
    def drain_histogram(self) -> Histogram:
        """How long drains took, in nanoseconds; ``print`` it to see its picture."""
        # Not at the top: most sessions are never asked.
        from kerneltrace_core.maps.histogram import Histogram

        nothing, *counts = self.drain_ns_buckets
        counts[0] += nothing  # the first slot of a histogram has both 0 and 1
        return Histogram.log2(counts, unit="ns")

    def drained(self, drained: Drained, nanoseconds: int) -> None:
        """Count a drain; one that found nothing is not counted as such."""
        self.discarded += drained.discarded
        self.lost += drained.lost
        if drained.records:
            self._drained(drained.records, len(drained.frames), nanoseconds)

    def drained_strided(self, strided: Strided, nanoseconds: int) -> None:
        """Count a drain of records without headers."""
        self.discarded += strided.discarded
        if strided.records:
            self._drained(strided.records, len(strided.data), nanoseconds)

    def _drained(self, records: int, size_bytes: int, nanoseconds: int) -> None:
        self.records += records
        self.size_bytes += size_bytes
        self.drains += 1
        self.drain_ns += nanoseconds
        self.drain_ns_max = max(self.drain_ns_max, nanoseconds)
        self.drain_ns_buckets[min(nanoseconds.bit_length(), BUCKETS - 1)] += 1

    def leave(self, queue: Queue, counts: ConsumerCounts) -> None:
        """Add up what a consumer that has gone leaves."""
        self.delivered += counts.delivered
        self.dropped += queue.dropped
        self.abandoned += counts.abandoned

    def with_present(self, present: list[ConsumerCounts]) -> RingCounts:
        """Return a copy with those who still read."""
        return replace(
            self,
            drain_ns_buckets=list(self.drain_ns_buckets),
            consumers=len(present),
            delivered=self.delivered + sum(counts.delivered for counts in present),
            waiting=sum(counts.waiting for counts in present),
            dropped=self.dropped + sum(counts.dropped for counts in present),
            abandoned=self.abandoned + sum(counts.abandoned for counts in present),
        )
