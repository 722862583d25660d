"""The ``kernel_*`` fields in other people's log records: logging, and django-structlog."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.utils.module_loading import import_string

from kerneltrace_core.exporters.logs import kernel_fields
from kerneltrace_core.requests import KernelStats
from kerneltrace_django.current import current_stats
from kerneltrace_django.settings import options

__all__ = ["KernelStatsFilter", "connect", "inject", "remove"]

MARK = "kernel_backend"
STRUCTLOG_SIGNALS = ("bind_extra_request_finished_metadata", "bind_extra_request_failed_metadata")
_NONE: dict[str, Any] = dict.fromkeys(kernel_fields(KernelStats.off()))
_injected: list[tuple[weakref.ref[logging.Handler], logging.Filter]] = []


class KernelStatsFilter(logging.Filter):
    """Add every ``kernel_*`` field to every record, and let it pass.

    Inside a request they say what the kernel did for it until now, outside of one all are None,
    so that a format may name any of them. For ``LOGGING``: ``{"()":
    "kerneltrace_django.logs.KernelStatsFilter"}`` among its filters. Takes some tens of
    microseconds for a record inside a request.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields, unless they are there: a finished request's record has its own."""
        if not hasattr(record, MARK):
            stats = current_stats()
            record.__dict__.update(_NONE if stats is None else kernel_fields(stats))
        return True


def inject() -> None:
    """Add the filter to every handler of every logger there is, once."""
    for handler in _handlers():
        if not any(isinstance(each, KernelStatsFilter) for each in handler.filters):
            added = KernelStatsFilter()
            handler.addFilter(added)
            _injected.append((weakref.ref(handler), added))


def remove() -> None:
    """Take out what ``inject`` has added."""
    while _injected:
        reference, added = _injected.pop()
        handler = reference()
        if handler is not None:
            handler.removeFilter(added)


def _handlers() -> Iterator[logging.Handler]:
    known = list(logging.Logger.manager.loggerDict.values())
    for logger in (logging.root, *known):
        if isinstance(logger, logging.Logger):  # else a place for one that was never asked for
            yield from logger.handlers


def connect() -> None:
    """Do what the settings and the installed applications ask for."""
    if options().inject_logging:
        inject()
    if apps.is_installed("django_structlog"):
        for name in STRUCTLOG_SIGNALS:
            try:
                signal = import_string(f"django_structlog.signals.{name}")
            except ImportError:
                continue  # a version that has it not
            signal.connect(add_to_structlog, dispatch_uid=f"kerneltrace_django.{name}")


def add_to_structlog(request: Any, log_kwargs: dict[str, Any], **_others: Any) -> None:
    """Add what is known to django-structlog's record of a request's end."""
    stats = getattr(request, "kerneltrace", None)
    if stats is not None and stats.record is not None:
        known = kernel_fields(stats)
        log_kwargs.update({key: value for key, value in known.items() if value is not None})
