"""KernelStats decode a block: each field from its words, unknown ones None."""

from __future__ import annotations

from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_tracer import ALL, FakeRecord
from kerneltrace_core.requests import CallStats, KernelStats, layout
from kerneltrace_core.requests.measures import OFF, Measures
from kerneltrace_core.requests.stats import FIELDS

pytestmark = pytest.mark.unit

LOOP, THREADS = layout.BANK, layout.BANK + layout.BANK_WORDS
LEDGER_ONLY = Measures(backend="procfs", ledger=True)


def block(**words: int) -> bytes:
    """Build a block of an open request; names are the layout's, or cause/call ones below."""
    values = [0] * layout.BLOCK_WORDS
    values[layout.VALUE] = 1 << 32 | 2
    for name, value in words.items():
        bank, _, rest = name.partition("_")
        if bank in ("loop", "thread") and rest in layout.CAUSES:
            start = LOOP if bank == "loop" else THREADS
            values[start + layout.BLOCKED_NS + layout.CAUSES.index(rest)] = value
        elif bank in ("loop", "thread") and hasattr(layout, rest.upper()):
            values[(LOOP if bank == "loop" else THREADS) + getattr(layout, rest.upper())] = value
        else:
            values[getattr(layout, name.upper())] = value
    return pack(f"<{layout.BLOCK_WORDS}Q", *values)


def with_calls(**calls: tuple[int, int, int]) -> bytes:
    values = [0] * layout.BLOCK_WORDS
    values[layout.VALUE] = 1 << 32 | 2
    for name, numbers in calls.items():
        start = layout.CALL + layout.CALL_INDEX[name] * layout.CALL_WORDS
        values[start : start + 3] = numbers
    return pack(f"<{layout.BLOCK_WORDS}Q", *values)


def stats_of(data: bytes, measures: Measures = ALL) -> KernelStats:
    return KernelStats.of_block(data, measures)


@pytest.mark.parametrize(
    "name",
    [
        *("read_bytes", "write_bytes", "net_rx_bytes", "net_tx_bytes", "disk_reads"),
        *("disk_writes", "disk_read_bytes", "disk_write_bytes", "disk_ns", "tcp_retransmits"),
        *("execs", "forks", "nested_ns", "loop_block_max_ns", "thread_ns", "detached"),
    ],
)
def test_a_word_is_its_attribute_and_no_other(name: str) -> None:
    told = stats_of(block(**{name: 4711})).as_dict()
    nothing = stats_of(block()).as_dict()

    assert told[name] == 4711
    derived = {"thread_cpu_ns"} if name == "thread_ns" else set()
    changed = {field for field in FIELDS if told[field] != nothing[field]}
    assert changed - derived == {name}


def test_time_on_the_loop_is_what_is_left_of_the_steps() -> None:
    stats = stats_of(
        block(
            start_ns=1000,
            end_ns=10_000,
            run_ns=5000,
            nested_ns=700,
            gap_ns=3300,
            loop_wait_min_ns=300,
            loop_wait_max_ns=400,
            loop_run_queue_ns=1000,
            loop_disk=1500,
            loop_lock=500,
        )
    )

    assert stats.wall_ns == 9000
    assert stats.blocked_ns == 2000
    assert stats.cpu_ns == 5000 - 1000 - 2000
    assert stats.suspended_ns == 3000
    assert (stats.loop_wait_ns, stats.loop_wait_max_ns) == (300, 400)
    assert stats.blocked_by is not None
    assert {cause: ns for cause, ns in stats.blocked_by.items() if ns} == {
        "disk": 1500,
        "lock": 500,
    }
    assert tuple(stats.blocked_by) == layout.CAUSES


def test_time_of_threads_is_apart_from_the_loops() -> None:
    stats = stats_of(block(thread_ns=900, thread_run_queue_ns=100, thread_sleep=300))

    assert (stats.thread_cpu_ns, stats.thread_run_queue_ns) == (500, 100)
    assert stats.thread_blocked_ns == 300
    assert stats.thread_blocked_by is not None
    assert stats.thread_blocked_by["sleep"] == 300
    assert (stats.blocked_ns, stats.run_queue_ns) == (0, 0)


def test_cpu_time_is_never_negative() -> None:
    stats = stats_of(block(run_ns=100, loop_run_queue_ns=90, loop_poll=20))

    assert stats.cpu_ns == 0


def test_switches_and_faults_are_both_banks_together() -> None:
    stats = stats_of(
        block(
            loop_ctx_voluntary=1,
            thread_ctx_voluntary=2,
            loop_ctx_involuntary=30,
            thread_ctx_involuntary=40,
            loop_faults=500,
            thread_faults=600,
            loop_major_faults=7,
            thread_major_faults=8,
        )
    )

    assert (stats.ctx_voluntary, stats.ctx_involuntary) == (3, 70)
    assert (stats.minor_faults, stats.major_faults) == (1085, 15)


@pytest.mark.parametrize(
    ("low", "high", "exact"),
    [
        (0, 0, True),
        (0, 100_000, True),
        (0, 100_001, False),
        (99_000_000, 100_000_000, True),
        (98_999_999, 100_000_000, False),
    ],
)
def test_a_wait_is_exact_within_100_us_or_1_percent(low: int, high: int, exact: bool) -> None:
    stats = stats_of(block(loop_wait_min_ns=low, loop_wait_max_ns=high))

    assert stats.loop_wait_exact is exact


def test_calls_are_summed_and_listed_the_slowest_first() -> None:
    stats = stats_of(
        with_calls(
            openat=(5, 2, 100),
            open=(1, 0, 10),
            fsync=(3, 1, 9000),
            fdatasync=(1, 0, 50),
            connect=(4, 3, 70),
            other=(2, 0, 1),
        )
    )

    assert (stats.syscalls, stats.syscall_errors, stats.syscall_ns) == (16, 6, 9231)
    assert stats.opens == 4
    assert (stats.fsyncs, stats.fsync_ns) == (4, 9050)
    assert stats.connects == 4
    assert stats.top_syscalls is not None
    assert [call.name for call in stats.top_syscalls] == [
        *("fsync", "openat", "connect", "fdatasync", "open", "other"),
    ]
    assert stats.top_syscalls[0] == CallStats("fsync", 3, 1, 9000)


def test_calls_that_are_not_timed_are_listed_the_most_frequent_first() -> None:
    untimed = Measures(backend="bpf", ledger=True, calls=True)

    stats = stats_of(with_calls(read=(3, 0, 0), write=(9, 1, 0)), untimed)

    assert stats.top_syscalls == [("write", 9, 1, None), ("read", 3, 0, None)]
    assert (stats.syscall_ns, stats.fsync_ns) == (None, None)
    assert stats.fsyncs == 0


def test_what_is_not_measured_is_none() -> None:
    told = stats_of(block(read_bytes=5, net_tx_bytes=5, disk_ns=5, forks=5), LEDGER_ONLY).as_dict()

    for name in (
        *("blocked_by", "syscalls", "syscall_ns", "syscall_errors", "top_syscalls", "read_bytes"),
        *("write_bytes", "net_rx_bytes", "net_tx_bytes", "opens", "fsyncs", "fsync_ns", "execs"),
        *("forks", "connects", "disk_reads", "disk_writes", "disk_read_bytes", "disk_write_bytes"),
        *("disk_ns", "tcp_retransmits", "minor_faults", "thread_blocked_by"),
    ):
        assert told[name] is None, name
    for name in ("wall_ns", "cpu_ns", "blocked_ns", "ctx_voluntary", "major_faults"):
        assert told[name] is not None, name


def test_without_a_slot_only_the_clocks_are_known() -> None:
    stats = stats_of(block(value=0, start_ns=10, end_ns=25, gap_ns=4, read_bytes=9))

    assert stats.attribution == "none"
    assert (stats.wall_ns, stats.suspended_ns) == (15, 4)
    assert (stats.read_bytes, stats.cpu_ns, stats.blocked_ns, stats.syscalls) == (None,) * 4


def test_stats_of_no_tracing_are_none_throughout() -> None:
    told = KernelStats.off().as_dict()

    assert told.pop("backend") == "off"
    assert told.pop("attribution") == "none"
    assert told.pop("phase") == "response"
    assert set(told.values()) == {None}
    assert repr(KernelStats.off()) == "<KernelStats backend=off>"


# ---- life -----------------------------------------------------------------------------------


def live() -> tuple[Any, KernelStats]:
    record: Any = FakeRecord(1 << 32 | 2)
    return record, KernelStats(record, ALL)


def test_live_stats_are_of_now() -> None:
    record, stats = live()

    record.spend(100, READ_BYTES=7)
    assert (stats.wall_ns, stats.read_bytes) == (100, 7)
    record.spend(50, READ_BYTES=1)
    assert (stats.wall_ns, stats.read_bytes) == (150, 8)


def test_a_mark_ends_the_response_and_begins_the_background() -> None:
    record, stats = live()
    record.spend(100, READ_BYTES=7)

    stats.mark()
    record.spend(50, READ_BYTES=2)
    stats.mark()  # a second one does nothing
    record.spend(30, WRITE_BYTES=4)
    too_early = stats.background
    stats.freeze(record.close())
    stats.record = None

    assert too_early is None
    assert (stats.wall_ns, stats.read_bytes, stats.write_bytes) == (100, 7, 0)
    background = stats.background
    assert background is not None
    assert background.phase == "background"
    assert (background.wall_ns, background.read_bytes, background.write_bytes) == (80, 2, 4)
    assert background.attribution == "exact"


def test_without_a_mark_all_of_it_is_the_response() -> None:
    record, stats = live()
    record.spend(100, READ_BYTES=7)

    stats.freeze(record.close())
    stats.record = None

    assert (stats.wall_ns, stats.read_bytes) == (100, 7)
    assert stats.background is None
    assert stats.phase == "response"


def test_a_difference_takes_the_later_of_what_is_no_sum() -> None:
    earlier = block(loop_block_max_ns=50, threads_used=1, read_bytes=10, end_ns=5)
    later = block(loop_block_max_ns=60, threads_used=2, read_bytes=15, end_ns=9)

    between = KernelStats.between(earlier, later, like=stats_of(later), phase="message")

    assert (between.loop_block_max_ns, between.threads) == (60, 2)
    assert (between.read_bytes, between.wall_ns, between.phase) == (5, 4, "message")


def test_as_dict_is_of_one_moment() -> None:
    record, stats = live()
    snapshots: list[bytes] = []

    def snapshot() -> bytes:
        snapshots.append(block(read_bytes=len(snapshots) + 1))
        return snapshots[-1]

    record.snapshot = snapshot

    told = stats.as_dict()

    assert len(snapshots) == 1
    assert told["read_bytes"] == 1
    assert tuple(told) == FIELDS


@given(st.lists(st.integers(0, 2**63), min_size=layout.BLOCK_WORDS, max_size=layout.BLOCK_WORDS))
def test_whatever_the_words_are_every_field_decodes(words: list[int]) -> None:
    data = pack(f"<{layout.BLOCK_WORDS}Q", *words)

    for measures in (ALL, LEDGER_ONLY, OFF):
        stats = KernelStats.of_block(data, measures)
        told = stats.as_dict()
        assert told["cpu_ns"] is None or told["cpu_ns"] >= 0
        assert told == {name: getattr(stats, name) for name in FIELDS}
