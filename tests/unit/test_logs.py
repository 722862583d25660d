"""Log records of requests: fields, levels, thresholds, through logging and through structlog."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from fake_tracer import ALL, MS, FakeRecord
from kerneltrace_core.exporters.logs import EventLog, kernel_fields
from kerneltrace_core.exporters.report import RequestReport
from kerneltrace_core.exporters.vocabulary import TERMS, milliseconds
from kerneltrace_core.requests.options import IntegrationOptions
from kerneltrace_core.requests.stats import KernelStats

ABOUT = {
    "method": "GET",
    "path": "/items/7",
    "route": "/items/{id}",
    "status_code": 200,
    "error_type": None,
}
REQUEST = "kerneltrace.request"


@pytest.fixture
def configured() -> Iterator[Callable[..., None]]:
    yield structlog.configure
    structlog.reset_defaults()


def busy() -> KernelStats:
    record = FakeRecord(value=2)
    record.spend(3 * MS, READ_BYTES=4096)
    record.block_on("disk", 9 * MS)
    for _ in range(2):
        record.call("fsync", ns=4_500_000)
    record.call("openat", errors=1)
    stats = KernelStats(record, ALL)  # type: ignore[arg-type]
    stats.mark()
    record.spend(2 * MS)
    stats.freeze(record.close())
    return stats


def report(**options: Any) -> RequestReport:
    return RequestReport(IntegrationOptions(**options))


def test_fields_are_the_vocabulary_in_milliseconds_counts_and_bytes() -> None:
    fields = kernel_fields(busy())

    assert fields["kernel_wall_ms"] == 12.0
    assert fields["kernel_cpu_ms"] == 3.0
    assert fields["kernel_blocked_ms"] == 9.0
    assert fields["kernel_blocked_by"] == {"disk_ms": 9.0}
    assert fields["kernel_read_bytes"] == 4096
    assert (fields["kernel_fsyncs"], fields["kernel_fsync_ms"]) == (2, 9.0)
    assert (fields["kernel_syscalls"], fields["kernel_syscall_errors"]) == (3, 1)
    assert fields["kernel_top_syscalls"][0] == {
        "name": "fsync", "calls": 2, "errors": 0, "ms": 9.0,
    }  # fmt: skip
    assert fields["kernel_background_wall_ms"] == 2.0
    assert (fields["kernel_phase"], fields["kernel_backend"]) == ("response", "bpf")
    assert fields["kernel_attribution"] == "exact"


@pytest.mark.parametrize(
    ("ns", "ms"),
    [(0, 0.0), (499, 0.0), (500, 0.001), (1_499, 0.001), (9 * MS, 9.0), (-1_400, -0.001)],
)
def test_milliseconds_are_rounded_to_the_microsecond(ns: int, ms: float) -> None:
    assert milliseconds(ns) == ms


def test_fields_of_an_untraced_request_are_all_there_and_unknown() -> None:
    known, unknown = kernel_fields(busy()), kernel_fields(KernelStats.off())

    assert unknown.keys() == known.keys()
    assert all(unknown[term.log_key] is None for term in TERMS)


def test_a_request_is_one_record_with_its_fields_as_extras(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, REQUEST)

    report()(object(), busy(), ABOUT)

    [record] = caplog.records
    assert (record.name, record.levelno) == (REQUEST, logging.INFO)
    assert record.getMessage() == (
        "GET /items/{id} 200 in 12.0 ms: cpu 3.0, run queue 0.0, blocked 9.0 (disk), "
        "loop wait 0.0, suspended 0.0"
    )
    fields = record.__dict__
    assert (fields["event"], fields["route"], fields["duration_ms"]) == (
        "request", "/items/{id}", 12.0,
    )  # fmt: skip
    assert fields["kernel_read_bytes"] == 4096


def test_a_percent_sign_in_a_path_is_no_format(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, REQUEST)

    report()(object(), busy(), {**ABOUT, "route": None, "path": "/100%s"})

    assert caplog.records[0].getMessage().startswith("GET /100%s 200")


def test_nothing_is_wanted_below_the_loggers_level() -> None:
    logging.getLogger(REQUEST).setLevel(logging.WARNING)
    try:
        assert not report().wanted()
        assert report(log_level="WARNING").wanted()
        assert report(slow_request_ms=1).wanted()
        assert report(on_request=print).wanted()
        assert report(loop_block_ms=1).wanted()
    finally:
        logging.getLogger(REQUEST).setLevel(logging.NOTSET)


def test_with_a_threshold_only_slow_requests_are_logged_as_warnings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, REQUEST)

    report(slow_request_ms=12)(object(), busy(), ABOUT)
    report(slow_request_ms=12.001)(object(), busy(), ABOUT)

    [record] = caplog.records
    assert (record.levelno, record.__dict__["event"]) == (logging.WARNING, "slow_request")


def test_the_loop_warning_names_method_route_and_duration(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)

    report(loop_block_ms=9)(object(), busy(), ABOUT)
    report(loop_block_ms=9.001)(object(), busy(), ABOUT)
    report(loop_block_ms=9)(object(), busy(), ABOUT, held_loop=False)

    [record] = caplog.records
    assert (record.name, record.levelno) == ("kerneltrace.loop", logging.WARNING)
    assert record.getMessage().startswith(
        "GET /items/{id} held the event loop for 9.0 ms in one step ("
    )
    assert "the request: cpu " in record.getMessage()
    assert record.__dict__["loop_block_ms"] == 9.0


def test_the_hook_gets_the_request_and_its_stats() -> None:
    seen: list[Any] = []
    request, stats = object(), busy()

    report(on_request=lambda *args: seen.append(args))(request, stats, ABOUT)

    assert seen == [(request, stats)]


def test_a_hook_that_raises_is_logged_once_and_reaches_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def hook(_scope: object, _stats: object) -> None:
        raise RuntimeError("no such metric")

    done = report(on_request=hook, log_level="DEBUG")
    for _ in range(3):
        done(object(), busy(), ABOUT)

    [record] = [each for each in caplog.records if each.name == "kerneltrace"]
    assert record.getMessage().startswith("call on_request")
    assert record.exc_info is not None


def test_a_log_handler_that_raises_reaches_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_record: logging.LogRecord) -> bool:
        raise RuntimeError("filter")

    caplog.set_level(logging.INFO, REQUEST)
    logging.getLogger(REQUEST).addFilter(refuse)
    try:
        report()(object(), busy(), ABOUT)
    finally:
        logging.getLogger(REQUEST).removeFilter(refuse)

    assert [each.name for each in caplog.records] == ["kerneltrace"]


def test_structlog_is_left_alone_until_the_application_configured_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, REQUEST)
    assert not structlog.is_configured()

    report()(object(), busy(), ABOUT)

    assert len(caplog.records) == 1


def test_a_configured_structlog_gets_one_event_with_plain_fields(
    configured: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    out = io.StringIO()
    configured(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(out),
    )

    report()(object(), busy(), ABOUT)

    event = json.loads(out.getvalue())
    assert (event["event"], event["level"], event["logger"]) == ("request", "info", REQUEST)
    assert event["route"] == "/items/{id}"
    assert event["kernel_blocked_by"] == {"disk_ms": 9.0}
    assert not caplog.records


def test_capture_logs_sees_the_event(configured: Callable[..., None]) -> None:
    configured(processors=[structlog.processors.JSONRenderer()])

    with structlog.testing.capture_logs() as events:
        report(slow_request_ms=1)(object(), busy(), ABOUT)

    [event] = events
    assert (event["event"], event["log_level"]) == ("slow_request", "warning")


def test_structlogs_own_levels_decide_what_is_wanted(configured: Callable[..., None]) -> None:
    configured(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    assert not EventLog(REQUEST).enabled(logging.INFO)
    assert EventLog(REQUEST).enabled(logging.WARNING)

    configured(
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    logging.getLogger(REQUEST).setLevel(logging.ERROR)
    try:
        assert not EventLog(REQUEST).enabled(logging.WARNING)
        assert EventLog(REQUEST).enabled(logging.ERROR)
    finally:
        logging.getLogger(REQUEST).setLevel(logging.NOTSET)

    configured(wrapper_class=structlog.BoundLogger)
    assert EventLog(REQUEST).enabled(logging.DEBUG)


def test_structlog_over_logging_keeps_the_loggers_name(
    configured: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, REQUEST)
    configured(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )

    report()(object(), busy(), ABOUT)

    [record] = caplog.records
    assert (record.name, record.getMessage()) == (REQUEST, "request")
    assert record.__dict__["kernel_wall_ms"] == 12.0


def test_a_structlog_that_raises_reaches_nobody(
    configured: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_args: object) -> Any:
        raise RuntimeError("processor")

    configured(processors=[refuse])
    done = report()

    done(object(), busy(), ABOUT)
    done(object(), busy(), ABOUT)

    assert [each.name for each in caplog.records] == ["kerneltrace"]
