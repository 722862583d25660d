"""Counts of programs add up over CPUs, and none is made up."""

from __future__ import annotations

from types import SimpleNamespace

from kerneltrace_core.btf.layout import ArrayLayout, MapLayout, ObjectLayout, Scalar
from kerneltrace_core.session.loss import ProgramCounters, read_counters, undrained
from kerneltrace_core.session.ring_counts import RingCounts
from kerneltrace_core.session.stats import SessionStats

U32 = Scalar(4, False, "int")
COUNTERS = MapLayout("kt_counters", 6, 64, U32, ArrayLayout(U32, 10), 4, 40)


def layout(**probes: int) -> ObjectLayout:
    return ObjectLayout(
        structs={},
        maps={"kt_counters": COUNTERS},
        variables={},
        programs={},
        events={},
        probes=probes,
    )


def cell(*counts: int) -> SimpleNamespace:
    names = ("seen", "submitted", "lost", "discarded", "filtered")
    return SimpleNamespace(**dict(zip(names, counts, strict=True)))


def test_the_counts_of_a_program_are_summed_over_all_cpus() -> None:
    cells = {0: [cell(1, 1, 0, 0, 0), cell(10, 5, 3, 2, 7)], 5: [cell(0, 0, 0, 0, 1)] * 2}

    found = read_counters(layout(one=0, two=5), {"kt_counters": cells})

    assert found == {
        "one": ProgramCounters(11, 6, 3, 2, 7),
        "two": ProgramCounters(0, 0, 0, 0, 2),
    }


def test_an_object_that_counts_nothing_has_no_counters() -> None:
    bare = ObjectLayout(structs={}, maps={}, variables={}, programs={}, events={}, probes={})

    assert read_counters(bare, {}) == {}


def test_what_is_neither_sent_nor_lost_nor_given_up_is_in_flight() -> None:
    assert ProgramCounters(10, 4, 3, 2, 100).in_flight == 1
    # A CPU that was read too early.
    assert ProgramCounters(10, 12, 0, 0, 0).in_flight == 0


def test_what_is_submitted_and_not_drained_is_in_a_ring() -> None:
    programs = {"one": ProgramCounters(10, 9, 1), "two": ProgramCounters(5, 5)}

    assert undrained(programs, {"a": RingCounts(records=10), "b": RingCounts(records=1)}) == 3
    assert undrained(programs, {"a": RingCounts(records=15)}) == 0


def test_what_a_perf_buffer_and_a_program_both_count_is_lost_once() -> None:
    rings = {"perf": RingCounts(lost=3, dropped=2), "ring": RingCounts(dropped=4)}

    assert SessionStats({"one": ProgramCounters(lost=3)}, rings).lost == 3 + 6
    assert SessionStats({}, rings).lost == 3 + 6
    # The buffer tells it only with the next record that it has space for.
    assert SessionStats({"one": ProgramCounters(lost=5)}, rings).lost == 5 + 6


RINGS = {"ring": RingCounts(dropped=1), "perf": RingCounts(lost=5, dropped=2)}


def test_what_a_ring_buffer_lost_adds_to_what_a_perf_buffer_reports() -> None:
    programs = {"one": ProgramCounters(lost=10)}

    # The 5 are of a program that does not count.
    assert SessionStats(programs, RINGS, perf_buffers={"one": ()}).lost == 10 + 5 + 3
    # It may have counted the 5 itself.
    assert SessionStats(programs, RINGS, perf_buffers={"one": ("perf",)}).lost == 10 + 3
    assert SessionStats(programs, RINGS).lost == 10 + 3


def test_what_one_program_lost_in_a_ring_buffer_hides_nothing_of_another() -> None:
    programs = {"to_ring": ProgramCounters(lost=10), "to_perf": ProgramCounters(lost=3)}
    buffers: dict[str, tuple[str, ...]] = {"to_ring": (), "to_perf": ("perf",)}

    assert SessionStats(programs, RINGS, perf_buffers=buffers).lost == 10 + 5 + 3
    late = {**programs, "to_perf": ProgramCounters(lost=7)}
    assert SessionStats(late, RINGS, perf_buffers=buffers).lost == 10 + 7 + 3


def test_each_perf_buffer_is_taken_by_itself_unless_a_program_writes_to_several() -> None:
    programs = {"one": ProgramCounters(lost=10), "two": ProgramCounters(lost=0)}
    rings = {"a": RingCounts(), "b": RingCounts(lost=5)}

    assert SessionStats(programs, rings, perf_buffers={"one": ("a",), "two": ("b",)}).lost == 15
    assert SessionStats(programs, rings, perf_buffers={"one": ("a", "b"), "two": ()}).lost == 10
    assert SessionStats(programs, rings, perf_buffers={"one": ("a",)}).lost == 10
