"""Tracing that is on for one block, and certainly off after it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.rounds import Unavailable

from kerneltrace_core.requests import RequestTracer, TracerOptions

ALL_GROUPS = ("sched", "syscalls", "block", "net")


@contextmanager
def tracing(backend: str, **options: Any) -> Iterator[RequestTracer]:
    """Trace this process. Raises Unavailable if the backend cannot be had here."""
    tracer = RequestTracer.shared(TracerOptions(backend=backend, **options))
    try:
        tracer.start()
        if tracer.backend != backend:
            raise Unavailable(f"backend {backend} does not start here (see make doctor)")
        yield tracer
    finally:
        tracer.stop()
        # The collector's turn, which the next variant would have to pay for.
        gc.collect()
