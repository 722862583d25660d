"""Statistics of a session are a copy of one moment, named, with the times of its drains."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta, timezone

import pytest

from harness.bpf_source import compile_bpf
from kerneltrace_core.maps import Bucket
from kerneltrace_core.ring import Drained
from kerneltrace_core.session.ring_counts import BUCKETS, RingCounts
from kerneltrace_core.testing import FakeSession
from unit.test_session_fake import PAGE, program_of


@pytest.fixture
def session() -> Iterator[FakeSession]:
    with FakeSession(compile_bpf(program_of(PAGE)), name="mine") as opened:
        yield opened


def read(session: FakeSession, count: int) -> None:
    with session.events("open_event", timeout=0) as events:
        for _ in range(count):
            session.emit("open_event")
        assert len(list(events)) == count


def test_later_events_change_nothing_in_what_was_read_before(session: FakeSession) -> None:
    read(session, 3)
    before = session.stats()
    told = asdict(before)

    read(session, 4)
    session.lose("on_exit", 5)

    assert asdict(before) == told
    assert (before.rings["events"].delivered, before.lost) == (3, 0)
    assert (session.stats().rings["events"].delivered, session.stats().lost) == (7, 5)


def test_statistics_are_plain_data_with_the_name_of_the_session(session: FakeSession) -> None:
    read(session, 3)
    session.lose("on_exit", 2)

    told = json.loads(json.dumps(asdict(session.stats())))

    assert told["session"] == "mine"
    assert told["programs"]["on_exit"]["lost"] == 2
    assert told["rings"]["events"]["records"] == 3


def test_counters_that_are_not_those_of_our_header_are_nobodys() -> None:
    other = compile_bpf(program_of(PAGE)).replace(b"\0discarded\0", b"\0displaced\0")

    with FakeSession(other) as session:
        assert session.layout.probes
        assert session.stats().programs == {}


@pytest.mark.parametrize(
    ("nanoseconds", "bucket"),
    [(0, 0), (1, 1), (2, 2), (3, 2), (1023, 10), (1024, 11), (2**34, 35), (2**60, BUCKETS - 1)],
)
def test_a_drain_is_counted_by_its_power_of_two(nanoseconds: int, bucket: int) -> None:
    counts = RingCounts()

    counts.drained(Drained(b"12345678", 1, 0, 0, False), nanoseconds)

    expected = [0] * BUCKETS
    expected[bucket] = 1
    assert counts.drain_ns_buckets == expected
    assert (counts.drains, counts.drain_ns, counts.drain_ns_max) == (1, nanoseconds, nanoseconds)


def test_a_drain_that_found_nothing_has_no_time() -> None:
    counts = RingCounts()

    counts.drained(Drained(b"", 0, 2, 3, False), 1000)

    assert (counts.drains, counts.discarded, counts.lost) == (0, 2, 3)
    assert sum(counts.drain_ns_buckets) == 0


def test_the_histogram_has_every_drain_in_its_bucket() -> None:
    counts = RingCounts()
    for nanoseconds in (0, 1, 2, 3, 1000):
        counts.drained(Drained(b"12345678", 1, 0, 0, False), nanoseconds)

    found = counts.drain_histogram

    assert (found.unit, found.total) == ("ns", 5)
    assert [each for each in found.buckets if each.count] == [
        Bucket(0, 1, 2),
        Bucket(2, 3, 2),
        Bucket(512, 1023, 1),
    ]


def test_a_kernel_timestamp_is_a_time_of_day(session: FakeSession) -> None:
    now_ns = time.monotonic_ns()

    now, earlier = session.wall_clock(now_ns), session.wall_clock(now_ns - 3_600 * 10**9)

    assert abs(now - datetime.now(timezone.utc)) < timedelta(seconds=5)
    assert abs(now - earlier - timedelta(hours=1)) < timedelta(seconds=5)
