"""The Server-Timing header: tokens, durations in milliseconds, silence on what is unknown."""

from __future__ import annotations

import re

from fake_tracer import ALL, MS, FakeRecord
from kerneltrace_core.exporters.server_timing import server_timing
from kerneltrace_core.exporters.vocabulary import TERMS, TOKENS
from kerneltrace_core.requests.measures import Measures
from kerneltrace_core.requests.stats import FIELDS, KernelStats


def test_the_header_names_each_time_of_the_ledger_and_the_largest_cause() -> None:
    record = FakeRecord(value=2)
    record.spend(3 * MS)
    record.block_on("net", 2 * MS)
    record.block_on("disk", 8_250_000)

    value = server_timing(KernelStats.of_block(record.snapshot(), ALL))

    assert value == (
        'kt-cpu;dur=3.000, kt-runq;dur=0.000, kt-blocked;desc="disk";dur=10.250, '
        "kt-loopwait;dur=0.000"
    )


def test_a_request_that_never_blocked_has_no_cause() -> None:
    value = server_timing(KernelStats.of_block(FakeRecord(value=2).snapshot(), ALL))

    assert value is not None
    assert "desc" not in value


def test_what_is_unknown_is_left_out() -> None:
    ledger_only = Measures(backend="procfs", ledger=True)
    block = FakeRecord(value=0).snapshot()  # no slot was free: no kernel time

    assert server_timing(KernelStats.of_block(block, ledger_only)) == "kt-loopwait;dur=0.000"
    assert server_timing(KernelStats.off()) is None


def test_tokens_are_tokens() -> None:
    assert all(re.fullmatch(r"[a-z-]+", token) for _, token in TOKENS)


def test_every_number_of_the_stats_has_a_name_everywhere() -> None:
    elsewhere = {"blocked_by", "thread_blocked_by", "top_syscalls"}
    elsewhere |= {"phase", "backend", "attribution"}

    assert {term.field for term in TERMS} == set(FIELDS) - elsewhere
    assert len({term.log_key for term in TERMS}) == len(TERMS)
    assert len({term.otel for term in TERMS}) == len(TERMS)
    assert all((term.unit == "ns") == term.field.endswith("_ns") for term in TERMS)
    assert all((term.unit == "bytes") == term.field.endswith("_bytes") for term in TERMS)


def test_the_prometheus_name_is_opentelemetrys_translation() -> None:
    names = {term.field: term.prometheus for term in TERMS}

    assert names["cpu_ns"] == "kerneltrace_cpu_time_seconds"
    assert names["disk_read_bytes"] == "kerneltrace_disk_read_size_bytes"
    assert names["fsyncs"] == "kerneltrace_fsync_count"
