"""Find, start and stop the process's tracer, on whichever event loop the application runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields

from kerneltrace_core.requests.options import TracerOptions
from kerneltrace_core.requests.tracer import RequestTracer

__all__ = ["Boot", "in_thread"]

_TRACER_OPTIONS = frozenset(each.name for each in fields(TracerOptions))


class Boot:
    """Start the tracer that the whole process shares, not before it is asked to.

    ``given`` are the names that the user spelled out. If none concerns the tracer, another part
    of the application may bring the options, and this takes what it finds.
    """

    def __init__(self, options: TracerOptions, given: Iterable[str]) -> None:
        self.required = options.required
        self.enabled = options.enabled and options.backend != "off"
        self.explicit = not _TRACER_OPTIONS.isdisjoint(given)
        self._options = options.tracer if self.explicit else None

    def tracer(self) -> RequestTracer:
        """Return the shared tracer, started or not."""
        return RequestTracer.shared(self._options)

    def soon(self) -> None:
        """Begin to start it on a thread of its own; neither blocks nor raises."""
        if self.enabled:
            self.tracer().start_soon()

    async def now(self) -> RequestTracer:
        """Start it and wait, but not on this thread. Raises KernelTraceError if it is required."""
        tracer = self.tracer()
        if self.enabled and not tracer.ready:
            await in_thread(tracer.start)
        return tracer

    def stop(self) -> None:
        """Detach everything; blocks for some milliseconds. A later request starts it anew."""
        if self.enabled:
            self.tracer().stop()


async def in_thread(function: Callable[[], object]) -> None:
    """Await ``function`` on another thread, under asyncio, uvloop or trio."""
    trio = sys.modules.get("trio")
    # trio first: as a guest it runs on another loop's thread, where asyncio answers too.
    if trio is not None and trio.lowlevel.in_trio_task():
        await trio.to_thread.run_sync(function)
        return
    await asyncio.get_running_loop().run_in_executor(None, function)
