"""Sort drained records by who wants them, and find those that nobody can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kerneltrace_core.events.engine import Selector
    from kerneltrace_core.session.consumer import Consumer

__all__ = ["Sorted", "Sorter"]

Counted = tuple[int, int, int]  # wanted, of other types, of the type but of another size


class Sorted(NamedTuple):
    """What some frames are: each consumer's share and its counts, and numbers for the ring."""

    shares: list[tuple[bytes, Counted]]
    unknown: int
    malformed: int
    unclaimed: int


class Sorter:
    """Count frames by type, once for each type that is read. ``known``: of all known tags.

    Not thread-safe. Without ``known``, or where readers look elsewhere for a tag, the tags that
    they read are the known ones. The numbers for the ring are exact as long as all look in the
    same place.
    """

    def __init__(self, known: Selector | None) -> None:
        self._known = known
        self._union: Selector | None = None
        self._union_of: frozenset[Selector] = frozenset()

    def sort(self, frames: bytes, records: int, consumers: list[Consumer]) -> Sorted:
        """Count these frames, which are so many records, for these consumers."""
        counts: dict[Selector, Counted] = {}
        shares = [self._share(frames, records, each, counts) for each in consumers]
        unknown, malformed = self._unreadable(frames, counts)
        claimed = sum(counted[0] for counted in counts.values())
        for consumer, (_, counted) in zip(consumers, shares, strict=True):
            if consumer.selector is None:
                claimed = records
            elif consumer.only is not None:
                claimed += counted[0]
                malformed += counted[2]
        unclaimed = max(records - unknown - malformed - claimed, 0)
        return Sorted(shares, unknown, malformed, unclaimed)

    def _share(
        self, frames: bytes, records: int, consumer: Consumer, counts: dict[Selector, Counted]
    ) -> tuple[bytes, Counted]:
        selector = consumer.selector
        if selector is None:
            return frames, (records, 0, 0)
        if consumer.only is not None:
            try:
                kept, others = consumer.only(frames)
                matching, other, malformed = selector.count(kept)
            except Exception as error:  # noqa: BLE001 - a user's function; raised to its reader
                consumer.failure = error
                return b"", (0, records, 0)
            return kept, (matching, other + others, malformed)
        if selector not in counts:
            counts[selector] = selector.count(frames)
        return frames, counts[selector]

    def _unreadable(self, frames: bytes, counts: dict[Selector, Counted]) -> tuple[int, int]:
        known = self._known
        if known is None or not any(_same_place(known, each) for each in counts):
            known = self._known_to(frozenset(counts))
        if known is None:
            # No tags: a record is malformed if it has nobody's size.
            return 0, min((wrong for _, _, wrong in counts.values()), default=0)
        if len(counts) == 1 and known in counts:
            _, unknown, malformed = counts[known]
            return unknown, malformed
        _, unknown, short = known.count(frames)
        # What is too short for a tag is of a wrong size for every type.
        return unknown, short + sum(max(wrong - short, 0) for _, _, wrong in counts.values())

    def _known_to(self, selectors: frozenset[Selector]) -> Selector | None:
        if selectors != self._union_of:
            self._union_of = selectors
            self._union = _union(selectors)
        return self._union


def _same_place(one: Selector, other: Selector) -> bool:
    return (one.tag_offset, one.tag_size) == (other.tag_offset, other.tag_size)


def _union(selectors: frozenset[Selector]) -> Selector | None:
    places = {(each.tag_offset, each.tag_size) for each in selectors}
    if len(places) != 1:
        return None
    if len(selectors) == 1:
        return next(iter(selectors))
    ((offset, size),) = places
    if offset < 0:
        return None
    from kerneltrace_core.events.engine import Selector

    tags = sorted({tag for each in selectors for tag in each.tags})
    return Selector(offset + size, False, offset, size, tuple(tags))
