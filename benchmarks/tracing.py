"""Tracing that is on for one block, and certainly off after it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.rounds import Unavailable

from kerneltrace_core.requests import RequestTracer, TracerOptions, programs

ALL_GROUPS = ("sched", "syscalls", "block", "net")


@contextmanager
def tracing(
    backend: str, *, second_copies: bool = False, **options: Any
) -> Iterator[RequestTracer]:
    """Trace this process. Raises Unavailable if the backend cannot be had here.

    ``second_copies``: as on a kernel that preempts programs.
    """
    tracer = RequestTracer.shared(TracerOptions(backend=backend, **options))
    try:
        with ExitStack() as undo:
            if second_copies:
                undo.enter_context(patch.object(programs, "preempts_programs", lambda _path: True))
            tracer.start()
        if tracer.backend != backend:
            raise Unavailable(f"backend {backend} does not start here (see make doctor)")
        yield tracer
    finally:
        tracer.stop()
        # The collector's turn, which the next variant would have to pay for.
        gc.collect()
