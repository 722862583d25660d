"""Stats of a request that has a thread to itself: no event loop, so nothing is said of one."""

from __future__ import annotations

from dataclasses import replace

from fake_tracer import ALL, FakeRecord
from kerneltrace_core.requests import KernelStats, RequestTracer, TracerOptions, layout

OF_LOOP = ("loop_wait_ns", "loop_wait_max_ns", "loop_wait_exact", "loop_block_max_ns")


class OwnStats(KernelStats):
    __slots__ = ("more",)


def stats_of_a_gap(*, loop: bool) -> KernelStats:
    record = FakeRecord(value=2)
    record.spend(3_000)
    record.words[layout.END_NS] += 5_000
    record.words[layout.GAP_NS] += 5_000
    record.words[layout.LOOP_WAIT_MIN_NS] = record.words[layout.LOOP_WAIT_MAX_NS] = 1_000
    measures = replace(ALL, loop=loop)
    return KernelStats.of_block(record.snapshot(), measures)


def test_without_a_loop_all_that_concerns_one_is_unknown() -> None:
    told = stats_of_a_gap(loop=False).as_dict()

    assert {name: told[name] for name in OF_LOOP} == dict.fromkeys(OF_LOOP)


def test_without_a_loop_every_gap_is_suspension_and_the_sum_is_the_wall() -> None:
    stats = stats_of_a_gap(loop=False)

    assert stats.suspended_ns == 5_000
    assert (stats.cpu_ns or 0) + (stats.suspended_ns or 0) == stats.wall_ns == 8_000


def test_with_a_loop_its_wait_is_no_suspension() -> None:
    stats = stats_of_a_gap(loop=True)

    assert (stats.loop_wait_ns, stats.suspended_ns) == (1_000, 4_000)
    assert stats.loop_block_max_ns == 3_000


def test_the_tracer_opens_stats_of_the_callers_class() -> None:
    tracer = RequestTracer(TracerOptions(backend="procfs"))
    before = tracer.open(OwnStats)
    tracer.start()
    try:
        stats = tracer.open(OwnStats, loop=False)
        tracer.finish(stats)
    finally:
        tracer.stop()

    assert type(before) is type(stats) is OwnStats
    assert (before.backend, stats.backend) == ("off", "procfs")
    assert stats.loop_wait_ns is None
