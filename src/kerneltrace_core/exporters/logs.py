"""Structured log records, through structlog if the application uses it, else logging."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kerneltrace_core.exporters.vocabulary import TERMS, milliseconds

if TYPE_CHECKING:
    from kerneltrace_core.requests import KernelStats

__all__ = ["EventLog", "kernel_fields", "summary"]

TOP_SYSCALLS = 5
SUMMARY = ("cpu", "run_queue", "blocked", "loop_wait", "suspended")
BACKGROUND = ("wall", "cpu", "blocked")
_BACKGROUND = tuple((f"kernel_background_{name}_ms", f"{name}_ns") for name in BACKGROUND)
_KEYS = tuple((term.field, term.log_key, term.unit == "ns") for term in TERMS)
# structlog's bound loggers: how the filtering and the stdlib one are asked for their level, and
# what all of them have; the generic one has no log() that takes a level.
_ASKED = ("is_enabled_for", "isEnabledFor")
_METHODS = ((50, "critical"), (40, "error"), (30, "warning"), (20, "info"))


def kernel_fields(stats: KernelStats) -> dict[str, Any]:
    """Return every ``kernel_*`` field of a log record; what is unknown is None.

    All keys are always there, since a ``logging`` format that names one must not fail on the
    request where it is unknown. Times are milliseconds.
    """
    known = stats.as_dict()
    background = stats.background
    fields = {
        key: _milliseconds(known[field]) if is_time else known[field]
        for field, key, is_time in _KEYS
    }
    fields["kernel_blocked_by"] = _causes(known["blocked_by"])
    fields["kernel_thread_blocked_by"] = _causes(known["thread_blocked_by"])
    fields["kernel_top_syscalls"] = _calls(known["top_syscalls"])
    for key, attribute in _BACKGROUND:
        ns = None if background is None else getattr(background, attribute)
        fields[key] = _milliseconds(ns)
    for name in ("phase", "backend", "attribution"):
        fields[f"kernel_{name}"] = known[name]
    return fields


def _milliseconds(ns: int | None) -> float | None:
    return None if ns is None else milliseconds(ns)


def _causes(causes: Mapping[str, int] | None) -> dict[str, float] | None:
    if causes is None:
        return None
    return {f"{cause}_ms": milliseconds(ns) for cause, ns in causes.items() if ns > 0}


def _calls(calls: list[Any] | None) -> list[dict[str, Any]] | None:
    if calls is None:
        return None
    return [
        {"name": name, "calls": count, "errors": errors, "ms": _milliseconds(ns)}
        for name, count, errors, ns in calls[:TOP_SYSCALLS]
    ]


def summary(fields: Mapping[str, Any]) -> str:
    """Return the ledger of kernel_fields() in one line for people; empty if nothing is known.

    What may be loop wait or suspended is told as both ranges, never as one of them.
    """
    doubt = 0.0
    if fields["kernel_loop_wait_exact"] is False:
        doubt = fields["kernel_loop_wait_max_ms"] - fields["kernel_loop_wait_ms"]
    parts = []
    for name in SUMMARY:
        value = fields[f"kernel_{name}_ms"]
        if value is None:
            continue
        told = f"{name.replace('_', ' ')} {value:.1f}"
        if name == "loop_wait" and doubt:
            told += f" to {value + doubt:.1f}"
        elif name == "suspended" and doubt:
            told = f"suspended {max(0.0, value - doubt):.1f} to {value:.1f}"
        elif name == "blocked":
            told += _largest(fields["kernel_blocked_by"])
        parts.append(told)
    threads = fields["kernel_thread_ms"]
    if parts and threads:
        blocked, causes = fields["kernel_thread_blocked_ms"], fields["kernel_thread_blocked_by"]
        rest = "" if blocked is None else f", blocked {blocked:.1f}{_largest(causes)}"
        return f"{', '.join(parts)}; in threads {threads:.1f}{rest}"
    return ", ".join(parts)


def _largest(causes: Mapping[str, float] | None) -> str:
    return f" ({max(causes, key=causes.__getitem__)[:-3]})" if causes else ""


class EventLog:
    """Write events to the logger ``name``.

    structlog is used once the application has imported and configured it, which is looked up
    each time: applications configure it late. Thread-safe.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._logger = logging.getLogger(name)
        self._asked: tuple[tuple[Any, ...], Any] = ((), None)

    def enabled(self, level: int) -> bool:
        """Say whether a record of ``level`` would be written; cheap enough for each request."""
        if "structlog" not in sys.modules:
            return self._logger.isEnabledFor(level)
        structlog = _structlog()
        if structlog is None:
            return self._logger.isEnabledFor(level)
        config = structlog.get_config()
        made_for = (config["wrapper_class"], config["logger_factory"])
        if self._asked[0] != made_for:
            bound = structlog.get_logger(self.name).bind()
            # On the class: the generic logger takes any other name for a method to log with.
            names = [name for name in _ASKED if hasattr(type(bound), name)]
            asked = getattr(bound, names[0]) if names else None
            self._asked = (made_for, asked)
        asked = self._asked[1]
        return asked is None or bool(asked(level))

    def write(self, level: int, event: str, text: str, fields: Mapping[str, Any]) -> None:
        """Write one record: ``event`` names it for machines, ``text`` says it to people."""
        structlog = _structlog()
        if structlog is None:
            self._logger.log(level, "%s", text, extra={"event": event, **fields})
            return
        # A new one for each record: the application may have given structlog another output.
        bound = structlog.get_logger(self.name).bind()
        bound = getattr(bound, "sync_bl", bound)  # the asynchronous one would have to be awaited
        method = next((name for least, name in _METHODS if level >= least), "debug")
        getattr(bound, method)(event, logger=self.name, **fields)


def _structlog() -> Any:
    structlog = sys.modules.get("structlog")
    return structlog if structlog is not None and structlog.is_configured() else None
