"""What became of the records of each program in the kernel, counted by kt_event.h."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerneltrace_core.btf.layout import ObjectLayout
    from kerneltrace_core.session.ring_counts import RingCounts

__all__ = ["ProgramCounters", "lost_in_kernel", "read_counters", "undrained"]

COUNTERS = "kt_counters"


@dataclass(frozen=True)
class ProgramCounters:
    """Counts of one program over all CPUs, since it was loaded. Immutable; they can be added.

    ``seen``: records that it was to send. Each is one of: ``submitted``; ``lost``, for want of
    space; ``discarded``, given up by the program; or ``in_flight``. ``filtered``: runs that
    kt_wanted() ended, which are of no record and not among ``seen``.
    """

    seen: int = 0
    submitted: int = 0
    lost: int = 0
    discarded: int = 0
    filtered: int = 0

    @property
    def in_flight(self) -> int:
        """Records that were being made at this moment.

        Exact when no program runs. Else the CPUs were read one after the other, and what went on
        meanwhile may be in one count and not yet in another; never below 0.
        """
        return max(0, self.seen - self.submitted - self.lost - self.discarded)

    def __add__(self, other: ProgramCounters) -> ProgramCounters:
        return ProgramCounters(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def read_counters(layout: ObjectLayout, maps: Mapping[str, Any]) -> dict[str, ProgramCounters]:
    """Return the counters of every program that has them, by its name; one system call for each.

    Those that are not loaded have counted nothing. An object without kt_event.h has none.
    """
    if COUNTERS not in layout.maps:
        return {}
    cells = maps[COUNTERS]
    return {program: _sum(cells[index]) for program, index in layout.probes.items()}


def undrained(programs: Mapping[str, ProgramCounters], rings: Mapping[str, RingCounts]) -> int:
    """Return how many submitted records are still in their rings, if all programs count theirs.

    So nothing is missing: ``seen = in_flight + lost + discarded + undrained`` and what became of
    the rings' ``records``. Read the rings' counts first: a record is counted before it can be
    drained.
    """
    submitted = sum(each.submitted for each in programs.values())
    return max(0, submitted - sum(each.records for each in rings.values()))


def lost_in_kernel(
    programs: Mapping[str, ProgramCounters],
    rings: Mapping[str, RingCounts],
    perf_buffers: Mapping[str, tuple[str, ...]],
) -> int:
    """Return how many records found no space in the kernel, each of them once.

    A perf buffer's loss is reported by its ring, with the next record that it has space for, and
    counted at once by a program that counts: the larger number has both. A ring buffer's is
    counted alone, so it adds to what a perf buffer reports. ``perf_buffers``: which of them each
    program may write to; one that is not among them may write to any.
    """
    # Buffers, what was counted of them, what they reported. A program that may write to several
    # makes one of these.
    groups = [(frozenset({name}), 0, each.lost) for name, each in rings.items()]
    for name, program in programs.items():
        may = frozenset(perf_buffers.get(name, rings))
        mine = [(may, program.lost, 0), *(each for each in groups if each[0] & may)]
        groups = [each for each in groups if not each[0] & may]
        groups.append(
            (
                may.union(*(buffers for buffers, _, _ in mine)),
                sum(counted for _, counted, _ in mine),
                sum(reported for _, _, reported in mine),
            )
        )
    return sum(max(counted, reported) for _, counted, reported in groups)


def _sum(cells: Iterable[Any]) -> ProgramCounters:
    total = ProgramCounters()
    for cell in cells:
        total += ProgramCounters(
            cell.seen, cell.submitted, cell.lost, cell.discarded, cell.filtered
        )
    return total
