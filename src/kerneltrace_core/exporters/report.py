"""What becomes of a finished request: its log record, the loop warning, the user's hook."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from kerneltrace_core.exporters.hooks import Hook
from kerneltrace_core.exporters.logs import EventLog, kernel_fields, summary
from kerneltrace_core.exporters.vocabulary import milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from kerneltrace_core.requests import IntegrationOptions, KernelStats

__all__ = ["RequestReport"]


class RequestReport:
    """Send finished requests where the options say. Thread-safe; never raises to its caller."""

    def __init__(self, options: IntegrationOptions) -> None:
        self.slow_ns = _nanoseconds(options.slow_request_ms)
        self.loop_block_ns = _nanoseconds(options.loop_block_ms)
        self.level = options.log_level if self.slow_ns is None else logging.WARNING
        self.hook = None if options.on_request is None else Hook("on_request", options.on_request)
        self._requests = EventLog("kerneltrace.request")
        self._loop = EventLog("kerneltrace.loop")
        self._write_safely = Hook("logging", self._write)
        # Whether reporting a request could have any effect, asked for each one. The hook and the
        # loop's warning look at every request, also when no record would be written.
        looks_always = self.hook is not None or self.loop_block_ns is not None
        self.wanted: Callable[[], bool] = (
            partial(bool, True) if looks_always else partial(self._requests.enabled, self.level)
        )

    def __call__(
        self,
        request: Any,
        stats: KernelStats,
        about: dict[str, Any],
        *,
        logged: bool = True,
        held_loop: bool = True,
    ) -> None:
        """Report one request, or one message of a connection.

        ``request`` is what the hook gets (ASGI: the scope). ``about`` are the plain fields of the
        log record: method, path, route, status_code, error_type and whatever else. ``logged`` and
        ``held_loop`` switch the request's record and the loop warning off for this one.
        """
        self._write_safely(stats, about, logged, held_loop)
        if self.hook is not None:
            self.hook(request, stats)

    def _write(
        self, stats: KernelStats, about: dict[str, Any], logged: bool, held_loop: bool
    ) -> None:
        if held_loop and self.loop_block_ns is not None:
            held_ns = stats.loop_block_max_ns
            if held_ns is not None and held_ns >= self.loop_block_ns:
                self._warn_of_loop(about, held_ns, stats)
        if logged and self._is_slow(stats) and self._requests.enabled(self.level):
            self._log(stats, about)

    def _is_slow(self, stats: KernelStats) -> bool:
        if self.slow_ns is None:
            return True
        wall_ns = stats.wall_ns
        return wall_ns is not None and wall_ns >= self.slow_ns

    def _log(self, stats: KernelStats, about: dict[str, Any]) -> None:
        fields = kernel_fields(stats)
        duration_ms = fields["kernel_wall_ms"]
        event = "request" if self.slow_ns is None else "slow_request"
        outcome = about["status_code"] or about["error_type"] or "-"
        took = "" if duration_ms is None else f" in {duration_ms:.1f} ms"
        told = summary(fields)
        text = f"{_name(about)} {outcome}{took}{': ' if told else ''}{told}"
        self._requests.write(
            self.level, event, text, {**about, "duration_ms": duration_ms, **fields}
        )

    def _warn_of_loop(self, about: dict[str, Any], held_ns: int, stats: KernelStats) -> None:
        held_ms = milliseconds(held_ns)
        # Of the whole request, whose longest step this is: cpu, or what it blocked on.
        fields = kernel_fields(stats)
        told = summary(fields)
        self._loop.write(
            logging.WARNING,
            "loop_block",
            f"{_name(about)} held the event loop for {held_ms:.1f} ms in one step "
            f"({about['path']}; the request: {told})",
            {**about, "loop_block_ms": held_ms, **fields},
        )


def _name(about: dict[str, Any]) -> str:
    return f"{about['method']} {about['route'] or about['path']}"


def _nanoseconds(milliseconds: float | None) -> int | None:
    return None if milliseconds is None else round(milliseconds * 1_000_000)
