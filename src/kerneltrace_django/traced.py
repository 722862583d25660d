"""One traced request: its record, from the middleware to the end of what it sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from kerneltrace_core.requests import current
from kerneltrace_core.requests.engine import pop, push
from kerneltrace_django.current import RequestStats
from kerneltrace_django.recent import remember
from kerneltrace_django.route import route_of
from kerneltrace_django.signals import event_loop_blocked, kernel_request_finished

if TYPE_CHECKING:
    from contextvars import Token

    from kerneltrace_core.requests import Record, RequestTracer
    from kerneltrace_django.tracing import Tracing

__all__ = ["Traced", "reset"]

Result = TypeVar("Result")


class Traced:
    """Hold a request's record until it is known to have ended.

    ``loop``: its home is an event loop, and not a thread that it has to itself. ``told``: somebody
    may want to know. ``end`` may come from any thread, and more than once.
    """

    __slots__ = (
        "_open",
        "_sender",
        "_told",
        "_tracing",
        "error_type",
        "record",
        "request",
        "stats",
        "status_code",
        "tracer",
    )

    def __init__(
        self,
        tracing: Tracing,
        tracer: RequestTracer,
        sender: type,
        request: Any,
        *,
        loop: bool,
        told: bool = True,
    ) -> None:
        self.request = request
        self.tracer = tracer
        self.stats = tracer.open(RequestStats, loop=loop)
        self.record: Record | None = self.stats.record
        self.status_code: int | None = None
        self.error_type: str | None = None
        self._tracing = tracing
        self._sender = sender
        self._told = told
        self._open = [True]
        if self.record is not None and told:
            # A circle until the end, when the tracer takes the record out of the stats.
            self.record.info = self.stats

    def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call ``function`` as this request, on whichever thread this is."""
        record = self.record
        if record is None or not record.value:
            return function(*args)
        token = current.set(record)
        previous = push(record)
        try:
            return function(*args)
        finally:
            pop(previous)
            reset(token)

    @property
    def ended(self) -> bool:
        """Whether it has, or is about to."""
        return not self._open

    def end(self, error: BaseException | None = None) -> None:
        """Close the record, and tell whoever wants to know; later calls do nothing."""
        try:
            self._open.pop()  # of two threads one gets it
        except IndexError:
            return
        if error is not None:
            self.error_type = type(error).__name__
        request, stats = self.request, self.stats
        self.tracer.finish(stats)
        if not self._told:
            return
        report = self._tracing.report
        if report.loop_block_ns is not None:
            held_ns = stats.loop_block_max_ns
            if held_ns is not None and held_ns >= report.loop_block_ns:
                event_loop_blocked.send_robust(
                    self._sender, request=request, stats=stats, duration_ms=held_ns / 1_000_000
                )
        if self._tracing.remembers:
            # Not by the signal: calling its receivers costs more than all that is done here.
            remember(self._tracing.options, request, stats, self.status_code)
        if kernel_request_finished.receivers:  # else a call, to find out the same
            kernel_request_finished.send_robust(
                self._sender, request=request, stats=stats, status_code=self.status_code
            )
        if report.wanted():
            report(request, stats, self._about())

    def _about(self) -> dict[str, Any]:
        match = self.request.resolver_match
        return {
            "method": self.request.method,
            "path": self.request.path,
            "route": route_of(self.request),
            "view": match.view_name if match is not None else None,
            "status_code": self.status_code,
            "error_type": self.error_type,
        }


def reset(token: Token[Record | None]) -> None:
    """Undo what set the current request."""
    try:
        current.reset(token)
    except ValueError:  # another context: somebody resumes us elsewhere
        current.set(None)
