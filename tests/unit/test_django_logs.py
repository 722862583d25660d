"""The kernel's fields in the log records of a Django project."""

from __future__ import annotations

import logging
import logging.config
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.dispatch import Signal
from django.http import HttpResponse
from django.test import RequestFactory, override_settings

from django_site import configure
from fake_tracer import MS, FakeTracer, spent
from kerneltrace_core.exporters.logs import kernel_fields
from kerneltrace_core.requests import KernelStats
from kerneltrace_core.requests.context import current
from kerneltrace_django import logs
from kerneltrace_django.current import RequestStats, current_stats
from kerneltrace_django.logs import KernelStatsFilter

configure()

FIELDS = set(kernel_fields(KernelStats.off()))


class Kept(logging.Handler):
    """Keeps the records that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def handler() -> Iterator[Kept]:
    kept = Kept()
    logger = logging.getLogger("shop")
    logger.addHandler(kept)
    yield kept
    logger.removeHandler(kept)
    logs.remove()


@pytest.fixture
def stats() -> Iterator[Any]:
    """Return the stats of a request that is current."""
    stats = FakeTracer().open(RequestStats)
    stats.record.info = stats
    spent(stats).spend(3 * MS)
    token = current.set(stats.record)
    yield stats
    current.reset(token)
    stats.record.info = None


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in record.__dict__.items() if key.startswith("kernel_")}


def test_inside_a_request_a_record_says_what_the_kernel_did_until_now(
    handler: Kept, stats: Any
) -> None:
    handler.addFilter(KernelStatsFilter())

    logging.getLogger("shop").warning("sold out")

    found = fields_of(handler.records[0])
    assert set(found) == FIELDS
    assert (found["kernel_wall_ms"], found["kernel_backend"]) == (3.0, "bpf")


def test_outside_of_a_request_every_field_is_none(handler: Kept) -> None:
    handler.addFilter(KernelStatsFilter())

    logging.getLogger("shop").warning("closed")

    assert fields_of(handler.records[0]) == dict.fromkeys(FIELDS)


def test_the_record_of_a_finished_request_keeps_its_own(handler: Kept) -> None:
    handler.addFilter(KernelStatsFilter())

    logging.getLogger("shop").warning("done", extra={"kernel_backend": "bpf", "kernel_cpu_ms": 7})

    assert fields_of(handler.records[0]) == {"kernel_backend": "bpf", "kernel_cpu_ms": 7}


def test_a_format_may_name_any_field(stats: Any, capsys: pytest.CaptureFixture[str]) -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"kernel": {"()": "kerneltrace_django.logs.KernelStatsFilter"}},
            "formatters": {"line": {"format": "%(message)s wall=%(kernel_wall_ms)s"}},
            "handlers": {
                "out": {
                    "class": "logging.StreamHandler",
                    "stream": sys.stdout,
                    "filters": ["kernel"],
                    "formatter": "line",
                }
            },
            "loggers": {"shop": {"handlers": ["out"], "propagate": False}},
        }
    )
    try:
        logging.getLogger("shop").warning("sold out")
    finally:
        logging.getLogger("shop").handlers.clear()
        logging.getLogger("shop").propagate = True

    assert capsys.readouterr().out == "sold out wall=3.0\n"


def test_injected_it_is_on_every_handler_once_and_can_be_taken_out(handler: Kept) -> None:
    own = Kept()
    own.addFilter(KernelStatsFilter())
    logging.getLogger("shop.own").addHandler(own)

    logs.inject()
    logs.inject()

    assert [type(each) for each in handler.filters] == [KernelStatsFilter]
    assert len(own.filters) == 1
    logs.remove()
    assert handler.filters == []
    assert len(own.filters) == 1
    logging.getLogger("shop.own").removeHandler(own)


@pytest.mark.parametrize("asked", [True, False])
def test_the_setting_injects_when_django_is_set_up(handler: Kept, asked: bool) -> None:
    with override_settings(KERNELTRACE={"INJECT_LOGGING": asked}):
        apps.get_app_config("kerneltrace_django").ready()

    assert len(handler.filters) == asked


def test_outside_of_a_request_there_are_no_current_stats(stats: Any) -> None:
    assert current_stats() is stats
    spent(stats).value = 0

    assert current_stats() is None


# ---- django-structlog --------------------------------------------------------------------


@pytest.fixture
def structlog_signals(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand in for django-structlog, as far as it is used."""
    package = ModuleType("django_structlog")
    module = ModuleType("django_structlog.signals")
    module.bind_extra_request_finished_metadata = Signal()  # type: ignore[attr-defined]
    package.signals = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "django_structlog", package)
    monkeypatch.setitem(sys.modules, "django_structlog.signals", module)
    monkeypatch.setattr(apps, "is_installed", lambda name: name == "django_structlog")
    return module


def send_finished(module: Any, stats: Any) -> dict[str, Any]:
    log_kwargs = {"code": 200}
    module.bind_extra_request_finished_metadata.send(
        sender=object,
        request=SimpleNamespace(kerneltrace=stats),
        response=None,
        logger=None,
        log_kwargs=log_kwargs,
    )
    return log_kwargs


def test_django_structlog_gets_what_is_known(structlog_signals: Any, stats: Any) -> None:
    logs.connect()
    logs.connect()

    told = send_finished(structlog_signals, stats)

    assert (told["code"], told["kernel_wall_ms"], told["kernel_backend"]) == (200, 3.0, "bpf")
    assert None not in told.values()


def test_django_structlog_gets_nothing_of_an_untraced_request(structlog_signals: Any) -> None:
    logs.connect()

    assert send_finished(structlog_signals, RequestStats.off()) == {"code": 200}


def test_the_real_django_structlog_writes_it(monkeypatch: pytest.MonkeyPatch, stats: Any) -> None:
    signals = pytest.importorskip("django_structlog.signals")
    from django_structlog.middlewares import RequestMiddleware

    structlog = pytest.importorskip("structlog")

    monkeypatch.setattr(apps, "is_installed", lambda name: name == "django_structlog")
    logs.connect()
    request = RequestFactory().get("/sold")
    request.kerneltrace = stats

    with structlog.testing.capture_logs() as entries:
        RequestMiddleware(lambda request: HttpResponse("sold"))(request)
    structlog.reset_defaults()

    signals.bind_extra_request_finished_metadata.disconnect(
        dispatch_uid="kerneltrace_django.bind_extra_request_finished_metadata"
    )
    [entry] = [entry for entry in entries if entry["event"] == "request_finished"]
    assert (entry["code"], entry["kernel_wall_ms"]) == (200, 3.0)
