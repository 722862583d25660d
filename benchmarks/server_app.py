"""The server of benchmarks/server.py: one process with every variant, so that nothing else differs.

GET /tracing/on and /tracing/off start and stop tracing; the rest goes to the variant that the
path begins with.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks import apps
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from kerneltrace_core.requests import RequestTracer, TracerOptions

BACKEND = os.environ.get("BENCH_BACKEND", "bpf")


class Variants:
    """Dispatch by the first part of the path."""

    def __init__(self, plain: Any) -> None:
        self._apps = {
            "plain": plain,
            "traced": apps.traced(plain, backend=BACKEND),
            "otel": apps.otel(plain, batch=True),
            "nothing": apps.Nothing(plain),
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        _, variant, rest = scope["path"].split("/", 2)
        if variant == "tracing":
            tracer = RequestTracer.shared(TracerOptions(backend=BACKEND))
            await run_in_threadpool(tracer.start if rest == "on" else tracer.stop)
            response = JSONResponse({"backend": tracer.backend})
            await response(scope, receive, send)
            return
        scope["path"] = f"/{rest}"
        await self._apps[variant](scope, receive, send)


bare = Variants(apps.plain())
usual = Variants(apps.fastapi())
