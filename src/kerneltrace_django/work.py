"""Work that is no request, and gets the same stats: a management command, a task."""

from __future__ import annotations

from kerneltrace_core.requests import RequestTracer, current
from kerneltrace_core.requests.engine import pop, push
from kerneltrace_django.current import RequestStats
from kerneltrace_django.settings import options
from kerneltrace_django.traced import reset

__all__ = ["Work", "start_tracer"]


def start_tracer() -> RequestTracer:
    """Return the process's tracer, started as the settings say.

    Blocks for up to 90 ms the first time. Raises KernelTraceError only if they require tracing.
    """
    tracer = RequestTracer.shared(options().tracer)
    if not tracer.ready:
        tracer.start()
    return tracer


class Work:
    """What the calling thread does from now on until ``end``, which has to come from it too.

    ``stats`` are live until then, and final afterwards; where tracing is off they know nothing.
    """

    def __init__(self, tracer: RequestTracer) -> None:
        self.stats = tracer.open(RequestStats, loop=False)
        self._tracer = tracer
        self._record = record = self.stats.record
        if record is not None:
            record.info = self.stats
            self._token = current.set(record)
            self._previous = push(record)

    def end(self) -> None:
        """Close the record and freeze the stats; a second call does nothing."""
        record, self._record = self._record, None
        if record is not None:
            pop(self._previous)
            reset(self._token)
            self._tracer.finish(self.stats)
