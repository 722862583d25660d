"""Histograms: buckets, sums, and the picture that BCC's tools draw."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.map_layouts import U32, U64, layout_of
from kerneltrace_core.errors import OptionError
from kerneltrace_core.maps.histogram import Bucket, Histogram
from kerneltrace_core.maps.kinds import MapType
from kerneltrace_core.maps.opening import open_map
from kerneltrace_core.testing.maps import FakeMapCalls


def bccs_stars(value: int, most: int, width: int) -> str:
    """Draw a bar by the words of bcc/table.py."""
    index, bar = 0, ""
    while not (index > (width * value / most) - 1 or index > width - 1):
        bar += "*"
        index += 1
    return bar


def test_powers_of_two_are_drawn_as_bcc_does() -> None:
    assert str(Histogram.log2([1, 0, 3, 8], unit="usecs")) == (
        "     usecs               : count     distribution\n"
        "         0 -> 1          : 1        |*****                                   |\n"
        "         2 -> 3          : 0        |                                        |\n"
        "         4 -> 7          : 3        |***************                         |\n"
        "         8 -> 15         : 8        |****************************************|"
    )


def test_many_powers_of_two_are_drawn_wider() -> None:
    lines = str(Histogram.log2({32: 2, 1: 1}, unit="nsecs")).splitlines()
    assert len(lines) == 34
    assert lines[0] == "               nsecs                         : count     distribution"
    assert (
        lines[2] == "                   2 -> 3                    : 1        |**********          |"
    )
    assert (
        lines[-1]
        == "          4294967296 -> 8589934591           : 2        |********************|"
    )


def test_equal_steps_are_drawn_as_bcc_does() -> None:
    assert str(Histogram.linear({0: 3, 2: 1}, unit="kbytes")) == (
        "     kbytes        : count     distribution\n"
        "        0          : 3        |****************************************|\n"
        "        1          : 0        |                                        |\n"
        "        2          : 1        |*************                           |"
    )


def test_steps_have_a_start_and_a_width() -> None:
    histogram = Histogram.linear([0, 2, 1, 0], start=100, step=50)
    assert histogram.buckets == (
        Bucket(100, 149, 0), Bucket(150, 199, 2), Bucket(200, 249, 1),
    )  # fmt: skip
    assert "        150        : 2 " in str(histogram)


def test_nothing_is_drawn_as_nothing() -> None:
    assert str(Histogram.log2([])) == str(Histogram.log2([0, 0])) == ""
    assert Histogram.log2([0, 0]).buckets == ()


def test_slots_may_begin_at_one_as_bccs_do() -> None:
    assert Histogram.log2([0, 5, 7], first_slot=1) == Histogram.log2([5, 7])
    with pytest.raises(OptionError, match=r"slots before the first \(1\) have counts"):
        Histogram.log2([1, 5, 7], first_slot=1)


def test_a_map_per_cpu_is_summed() -> None:
    fake = FakeMapCalls(cpus=2)
    layout = layout_of(MapType.PERCPU_ARRAY, U32, U64, 4)
    slots = open_map(fake.create_like(layout), "slots", layout, calls=fake)
    slots[1] = [2, 3]
    slots[3] = [1, 0]

    assert Histogram.log2(slots).counts == (0, 5, 0, 1)
    assert Histogram.log2(slots).total == 6


def test_histograms_of_one_kind_are_added() -> None:
    assert Histogram.log2([1, 2]) + Histogram.log2([1, 0, 4]) == Histogram.log2([2, 2, 4])
    with pytest.raises(OptionError, match="their buckets are not the same"):
        Histogram.log2([1]) + Histogram.linear([1])
    with pytest.raises(TypeError):
        Histogram.log2([1]) + 1  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Histogram.log2([-1]), "a count is negative: -1"),
        (lambda: Histogram.log2([0] * 65), "65 powers of two, the most are 64"),
        (lambda: Histogram.log2({-1: 1}), "a slot is no number from 0 on"),
        (lambda: Histogram.log2({"a": 1}), "a slot is no number"),
        (lambda: Histogram.linear({1 << 30: 1}), "slot 1073741824, the most are"),
        (lambda: Histogram.linear([1], step=0), "step 0"),
        (lambda: Histogram([1], start=5), "are for scale='linear'"),
        (lambda: Histogram.of([-1]), "-1 is below 0"),
        (lambda: Histogram.log2(5), "5 is no map, mapping or sequence of counts"),  # type: ignore[arg-type]
        (lambda: Histogram.log2({0: 1, 3: None}), "slot 3 has None, which is no count"),
        (lambda: Histogram.linear([[1, 1.5]]), "slot 0 has 1.5, which is no count"),  # type: ignore[list-item]
    ],
)
def test_what_makes_no_histogram_is_refused(make: object, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        make()  # type: ignore[operator]


@settings(deadline=None)
@given(st.lists(st.integers(0, (1 << 64) - 1)))
def test_each_value_is_in_the_bucket_that_has_it(values: list[int]) -> None:
    histogram = Histogram.of(values)
    assert histogram.total == len(values)
    for bucket in histogram.buckets:
        assert bucket.count == sum(bucket.low <= value <= bucket.high for value in values)


@settings(deadline=None)
@given(st.lists(st.integers(-50, 50)), st.integers(1, 9))
def test_each_value_is_in_the_step_that_has_it(values: list[int], step: int) -> None:
    histogram = Histogram.of(values, scale="linear", start=-50, step=step)
    assert histogram.total == len(values)
    for bucket in histogram.buckets:
        assert bucket.count == sum(bucket.low <= value <= bucket.high for value in values)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=64).filter(any))
def test_bars_are_as_long_as_bccs(counts: list[int]) -> None:
    lines = str(Histogram.log2(counts)).splitlines()[1:]
    width = 20 if len(lines) > 32 else 40
    bars = [line.rpartition("|")[0].rpartition("|")[2].rstrip() for line in lines]
    assert bars == [bccs_stars(count, max(counts), width) for count in counts[: len(lines)]]


def test_counts_may_be_numpys() -> None:
    import numpy

    assert Histogram.log2(numpy.array([1, 2])) == Histogram.log2({1: numpy.uint32(2), 0: 1})
