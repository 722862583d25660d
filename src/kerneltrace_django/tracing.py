"""What the settings mean for requests, worked out once; and the start of the process's tracer."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from kerneltrace_core import KernelTraceError
from kerneltrace_core.exporters.hooks import Hook
from kerneltrace_core.exporters.report import RequestReport
from kerneltrace_core.requests import RequestTracer
from kerneltrace_django.settings import DjangoOptions, options

__all__ = ["Tracing", "tracing"]

logger = logging.getLogger("kerneltrace")

Decide = Callable[[Any], object]


class Tracing:
    """Serve one set of options. Thread-safe.

    Making one starts nothing: middlewares are made in a server's master process, which forks.
    """

    def __init__(self, options: DjangoOptions) -> None:
        self.options = options
        self.enabled = options.enabled and options.backend != "off"
        self.report = RequestReport(options)
        self.skip = _skip(options)
        self.timing = _timing(options)
        self.remembers = options.recent_requests > 0
        # The process's, once it was looked for; for the middleware, which asks it itself whether
        # it is ready and else calls tracer().
        self.found: RequestTracer | None = None
        self._complained = False

    def tracer(self) -> RequestTracer | None:
        """Return the tracer once it is ready, and begin to start it if need be.

        Neither blocks nor raises, but where it is required: then it is started here and now,
        less than 100 ms, as a rule, and ImproperlyConfigured says why that failed.
        """
        tracer = self.found
        if tracer is not None and tracer.ready:
            return tracer
        if not self.enabled:
            return None
        tracer = self._find()
        if self.options.required:
            self._start(tracer)
        elif not tracer.ready:
            tracer.start_soon()
        return tracer if tracer.ready else None

    async def tracer_on_loop(self) -> RequestTracer | None:
        """Do as ``tracer``, on an event loop: what blocks is done on another thread."""
        tracer = self.found
        if tracer is not None and tracer.ready:
            return tracer
        if self.enabled and self.options.required:
            await asyncio.get_running_loop().run_in_executor(None, self._start, self._find())
        return self.tracer()

    def _find(self) -> RequestTracer:
        # Late, since a fork may lie between this and __init__; once, since other options than
        # those of who came first are complained about each time.
        if self.found is None:
            self.found = RequestTracer.shared(self.options.tracer)
        return self.found

    def _start(self, tracer: RequestTracer) -> None:
        try:
            tracer.start()
        except KernelTraceError as error:
            # Django's default logging tells nobody why every answer is a 500.
            if not self._complained:
                self._complained = True
                logger.error("KERNELTRACE['REQUIRED']: %s", error)  # noqa: TRY400 - raised below
            raise ImproperlyConfigured(f"KERNELTRACE['REQUIRED']: {error}") from error


def _skip(options: DjangoOptions) -> Decide | None:
    rate = options.sample_rate
    searches = [re.compile(pattern).search for pattern in options.excluded_urls]
    if not searches:
        return None if rate >= 1 else lambda _request: random.random() >= rate

    def skip(request: Any) -> bool:
        path = request.path
        return any(search(path) for search in searches) or random.random() >= rate

    return skip


def _timing(options: DjangoOptions) -> Decide | None:
    if callable(options.server_timing):
        return Hook("server_timing", options.server_timing)
    return (lambda _request: True) if options.server_timing else None


_tracing: Tracing | None = None


def tracing() -> Tracing:
    """Return what the settings of this moment mean."""
    global _tracing
    chosen = options()
    found = _tracing
    if found is None or found.options is not chosen:
        found = _tracing = Tracing(chosen)
    return found
