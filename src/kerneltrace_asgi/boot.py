"""Find, start and stop the process's tracer, on whichever event loop the application runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import ClassVar

from kerneltrace_core.requests import RequestTracer, TracerOptions

__all__ = ["Boot", "in_thread"]

_NAMES = frozenset(each.name for each in fields(TracerOptions))


class Boot:
    """Start the tracer that the whole process shares, not before it is asked to.

    ``given`` are the names of the options that the user spelled out. If none concerns the tracer,
    this takes it as another part of the application wanted it.
    """

    _spelled_out: ClassVar[TracerOptions | None] = None

    def __init__(self, options: TracerOptions, given: Iterable[str]) -> None:
        self.required = options.required
        self.enabled = options.enabled and options.backend != "off"
        self.explicit = not _NAMES.isdisjoint(given)
        self._options = options.tracer
        self._tracer: RequestTracer | None = None

    def find(self) -> RequestTracer:
        """Return the shared tracer, started or not."""
        if self._tracer is None:
            if self.explicit:
                Boot._spelled_out = self._options
            self._tracer = RequestTracer.shared(Boot._spelled_out or self._options)
        return self._tracer

    def soon(self) -> None:
        """Begin to start it on a thread of its own; neither blocks nor raises."""
        if self.enabled:
            self.find().start_soon()

    async def now(self) -> RequestTracer:
        """Start it and wait, but not on this thread. Raises KernelTraceError if it is required."""
        tracer = self.find()
        if self.enabled and not tracer.ready:
            await in_thread(tracer.start)
        return tracer

    def stop(self) -> None:
        """Detach everything; blocks for some milliseconds. A later request starts it anew."""
        tracer, self._tracer, Boot._spelled_out = self._tracer, None, None
        if tracer is not None and self.enabled:
            tracer.stop()


async def in_thread(function: Callable[[], object]) -> None:
    """Await ``function`` on another thread, under asyncio, uvloop or trio."""
    trio = sys.modules.get("trio")
    # trio first: as a guest it runs on another loop's thread, where asyncio answers too.
    if trio is not None and trio.lowlevel.in_trio_task():
        await trio.to_thread.run_sync(function)
        return
    await asyncio.get_running_loop().run_in_executor(None, function)
