"""What a session saw, delivered and lost, at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from kerneltrace_core.btf.layout import StructLayout
from kerneltrace_core.session.loss import (
    COUNTERS,
    ProgramCounters,
    lost_in_kernel,
    read_counters,
    undrained,
)
from kerneltrace_core.session.ring_counts import RingCounts

if TYPE_CHECKING:
    from kerneltrace_core.btf.layout import ObjectLayout
    from kerneltrace_core.maps.maps import Maps
    from kerneltrace_core.session.rings import Rings

__all__ = ["SessionStats", "read_stats"]


@dataclass(frozen=True)
class SessionStats:
    """Counts of one moment, by program and by ring; plain numbers, for metrics and tests.

    ``programs``: what each program that counts (``KT_PROBE``) saw, submitted, lost for want of
    space, discarded, and left out by the filter. ``rings``: what became of the records of each
    ring once they were drained, and how long that took. Nothing is lost without being counted:
    seen = submitted + lost + discarded in the kernel, and what was submitted is either still in
    the ring (``undrained``) or among a ring's ``records``. ``session``: its name.
    ``perf_buffers``: the rings of that kind that each program may write to, where that is known.

    A copy: later events change nothing in it. ``dataclasses.asdict`` makes plain data of it.
    """

    programs: Mapping[str, ProgramCounters]
    rings: Mapping[str, RingCounts]
    session: str = ""
    perf_buffers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Records that nobody will read: no space in a ring, or in a reader's queue.

        A perf buffer's loss, which the kernel reports and programs may have counted, is taken once.
        """
        dropped = sum(each.dropped for each in self.rings.values())
        return lost_in_kernel(self.programs, self.rings, self.perf_buffers) + dropped

    @property
    def undrained(self) -> int:
        """Records that wait in the rings, if every program that writes there counts."""
        return undrained(self.programs, self.rings)


def read_stats(layout: ObjectLayout, maps: Maps, rings: Rings, session: str = "") -> SessionStats:
    """Read all counts. A few system calls; what happens meanwhile may be in some of them."""
    # Rings first: a record is counted before it can be drained.
    drained = {name: hub.stats() for name, hub in rings.items()}
    counted = read_counters(layout, maps) if _counts(layout) else {}
    buffers = {name: layout.perf_buffers[name] for name in counted if name in layout.perf_buffers}
    return SessionStats(counted, drained, session, buffers)


def _counts(layout: ObjectLayout) -> bool:
    """Tell whether the counters are those of kt_event.h: others may have a map of that name."""
    value = layout.maps[COUNTERS].value if COUNTERS in layout.maps else None
    if not isinstance(value, StructLayout):
        return False
    return {each.name for each in value.fields()} >= {each.name for each in fields(ProgramCounters)}
