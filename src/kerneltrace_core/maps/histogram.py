"""Histograms of counts by bucket, and their picture as BCC's tools draw it."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kerneltrace_core.errors import OptionError

__all__ = ["Bucket", "Histogram"]

STARS = 40
# Beyond this the numbers are wider and the bars half as long (bcc/table.py, _print_log2_hist).
WIDE_FROM = 32
MOST_SLOTS = 64


@dataclass(frozen=True)
class Bucket:
    """``count`` values from ``low`` to ``high``, both included. Immutable."""

    low: int
    high: int
    count: int


class Histogram:
    """Counts of values by bucket. Immutable, thread-safe; ``print`` it to see its picture.

    ``Histogram.log2`` and ``Histogram.linear`` take a map's entries, or any mapping of slots to
    counts or sequence of counts; of a map that is per CPU, the sums. ``+`` adds two of one kind.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        scale: Literal["log2", "linear"] = "log2",
        unit: str = "value",
        start: int = 0,
        step: int = 1,
    ) -> None:
        if any(count < 0 for count in counts):
            raise OptionError(f"make histogram: a count is negative: {min(counts)}")
        if scale == "log2" and len(counts) > MOST_SLOTS:
            raise OptionError(f"make histogram: {len(counts)} powers of two, the most are 64")
        if scale == "log2" and (start, step) != (0, 1):
            raise OptionError("make histogram: start and step are for scale='linear'")
        if step < 1:
            raise OptionError(f"make histogram: step {step}, the least is 1")
        self.scale = scale
        self.unit = unit
        self.start = start
        self.step = step
        self.counts = tuple(counts)

    @classmethod
    def log2(
        cls, counts: Mapping[int, Any] | Sequence[int], *, unit: str = "value", first_slot: int = 0
    ) -> Histogram:
        """Make one of powers of two: slot 0 has 0 and 1, slot n the values from 2**n on.

        ``first_slot``: the number that the program gives to the first one; 1 for BCC's
        ``bpf_log2l``, 0 for ``log2l`` of libbpf-tools.
        """
        listed = _listed(counts)
        if any(listed[:first_slot]):
            raise OptionError(f"make histogram: slots before the first ({first_slot}) have counts")
        return cls(listed[first_slot:], scale="log2", unit=unit)

    @classmethod
    def linear(
        cls,
        counts: Mapping[int, Any] | Sequence[int],
        *,
        unit: str = "value",
        start: int = 0,
        step: int = 1,
    ) -> Histogram:
        """Make one of equal steps: slot n has the values from start + n * step on."""
        return cls(_listed(counts), scale="linear", unit=unit, start=start, step=step)

    @classmethod
    def of(
        cls,
        values: Iterable[int],
        *,
        scale: Literal["log2", "linear"] = "log2",
        unit: str = "value",
        start: int = 0,
        step: int = 1,
    ) -> Histogram:
        """Sort values into buckets here. Raises OptionError for one below the first bucket."""
        counts: dict[int, int] = {}
        for value in values:
            if value < start:
                raise OptionError(f"make histogram: {value} is below {start}")
            slot = max(0, value.bit_length() - 1) if scale == "log2" else (value - start) // step
            counts[slot] = counts.get(slot, 0) + 1
        return cls(_listed(counts), scale=scale, unit=unit, start=start, step=step)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Every bucket, up to the last that has a count."""
        last = max((index for index, count in enumerate(self.counts) if count), default=-1)
        return tuple(self._bucket(index) for index in range(last + 1))

    def _bucket(self, index: int) -> Bucket:
        if self.scale == "linear":
            low = self.start + index * self.step
            return Bucket(low, low + self.step - 1, self.counts[index])
        low = 1 << index if index else 0
        return Bucket(low, (2 << index) - 1, self.counts[index])

    def __add__(self, other: Histogram) -> Histogram:
        if not isinstance(other, Histogram):
            return NotImplemented
        if self._kind() != other._kind():
            raise OptionError("add histograms: their buckets are not the same")
        longer, shorter = sorted((self.counts, other.counts), key=len, reverse=True)
        padded = (*shorter, *[0] * (len(longer) - len(shorter)))
        added = [one + two for one, two in zip(longer, padded, strict=True)]
        scale: Any = self.scale
        return Histogram(added, scale=scale, unit=self.unit, start=self.start, step=self.step)

    def _kind(self) -> tuple[object, ...]:
        return self.scale, self.start, self.step

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (self._kind(), self.unit, self.buckets) == (
            other._kind(),
            other.unit,
            other.buckets,
        )

    def __hash__(self) -> int:
        return hash((self._kind(), self.unit, self.buckets))

    def __repr__(self) -> str:
        return f"<Histogram {self.scale} of {self.total} {self.unit}>"

    def __str__(self) -> str:
        """Draw it as BCC's print_log2_hist and print_linear_hist do; nothing if it is empty."""
        buckets = self.buckets
        if not buckets:
            return ""
        most = max(bucket.count for bucket in buckets)
        if self.scale == "linear":
            lines = [f"     {self.unit:<13} : count     distribution"]
            for each in buckets:
                bar = _stars(each.count, most, STARS)
                lines.append(f"        {each.low:<10} : {each.count:<8} |{bar:<{STARS}}|")
            return "\n".join(lines)
        wide = len(buckets) > WIDE_FROM
        width, stars = (20, STARS // 2) if wide else (10, STARS)
        margin, heading = (15, 29) if wide else (5, 19)
        lines = [f"{'':{margin}}{self.unit:<{heading}} : count     distribution"]
        for each in buckets:
            bar = _stars(each.count, most, stars)
            lines.append(
                f"{each.low:>{width}} -> {each.high:<{width}} : {each.count:<8} |{bar:<{stars}}|"
            )
        return "\n".join(lines)


def _stars(count: int, most: int, width: int) -> str:
    return "*" * (width * count // most)


def _listed(counts: Mapping[int, Any] | Sequence[int]) -> list[int]:
    """Return counts by slot; a list for each CPU is summed."""
    if not isinstance(counts, Iterable):
        raise OptionError(f"make histogram: {counts!r} is no map, mapping or sequence of counts")
    items = counts.items() if isinstance(counts, Mapping) else enumerate(counts)
    by_slot: dict[Any, int] = {slot: _count(slot, count) for slot, count in items}
    if any(not isinstance(slot, int) or slot < 0 for slot in by_slot):
        raise OptionError("make histogram: a slot is no number from 0 on")
    if by_slot and max(by_slot) > 1 << 20:
        raise OptionError(f"make histogram: slot {max(by_slot)}, the most are {1 << 20}")
    return [by_slot.get(slot, 0) for slot in range(max(by_slot, default=-1) + 1)]


def _count(slot: object, value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(_count(slot, each) for each in value)
    try:
        return operator.index(value)  # as numpy's numbers have it, too
    except TypeError:
        raise OptionError(
            f"make histogram: slot {slot} has {value!r}, which is no count (of a field: "
            "{slot: value.field for slot, value in map.items()})"
        ) from None
