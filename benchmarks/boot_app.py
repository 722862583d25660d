"""The processes of benchmarks/boot.py. Imports nothing that an application does not have anyway."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

SETTLE_SECONDS = 0.15
REQUESTS = 1000
# Ticks without a start last as long as a start may take.
BASE_SECONDS = 0.08
START_SECONDS = 10.0


async def _nothing(request: Request) -> Response:
    del request
    return Response(b"ok")


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Any) -> None:
    del message


async def _serve(app: Any, times: int) -> None:
    for _ in range(times):
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        await app(scope, _receive, _send)


def _kib(path: str, name: str) -> int:
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _resident_kib() -> int:
    # VmRSS is a sum of per-CPU counters, some hundred KiB off; this walks the pages.
    return _kib("/proc/self/smaps_rollup", "Rss")


def start(backend: str | None) -> dict[str, float]:
    """Start as an application would, traced by a backend or not; return ms and KiB."""
    app: Any = Starlette(routes=[Route("/", _nothing)])
    loop = asyncio.new_event_loop()
    loop.run_until_complete(_serve(app, REQUESTS))
    before = time.perf_counter()
    imported = started = before
    if backend is not None:
        from kerneltrace_asgi import KernelTraceMiddleware
        from kerneltrace_core.requests import RequestTracer, TracerOptions

        imported = time.perf_counter()
        logging.getLogger("kerneltrace").setLevel(logging.WARNING)
        app = KernelTraceMiddleware(app, backend=backend)
        tracer = RequestTracer.shared(TracerOptions(backend=backend))
        try:
            tracer.start()
            started = time.perf_counter()
            if tracer.backend != backend:
                raise SystemExit(f"backend {backend} does not start here")
            found = _look(app, loop)
        finally:
            tracer.stop()
    else:
        found = _look(app, loop)
    loop.close()
    return {"import_ms": (imported - before) * 1e3, "start_ms": (started - imported) * 1e3, **found}


def _look(app: Any, loop: asyncio.AbstractEventLoop) -> dict[str, float]:
    time.sleep(SETTLE_SECONDS)
    settled = _resident_kib()
    loop.run_until_complete(_serve(app, REQUESTS))
    return {
        "settled_kib": settled,
        "served_kib": _resident_kib(),
        "peak_kib": _kib("/proc/self/status", "VmHWM"),
    }


async def _longest_step_ms(done: Any) -> float:
    """Return the longest time between two turns of the loop until ``done()``."""
    longest = 0.0
    last = time.perf_counter()
    while not done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest * 1e3


def start_beside_loop(backend: str) -> dict[str, float]:
    """Start on a thread while the event loop turns; return its longest steps in ms."""
    from kerneltrace_core.requests import RequestTracer, TracerOptions

    async def measure() -> dict[str, float]:
        await _longest_step_ms(_until(time.perf_counter() + BASE_SECONDS))
        base = await _longest_step_ms(_until(time.perf_counter() + BASE_SECONDS))
        tracer = RequestTracer.shared(TracerOptions(backend=backend))
        late = _until(time.perf_counter() + START_SECONDS)
        tracer.start_soon()
        during = await _longest_step_ms(lambda: tracer.ready or late())
        return {"base_ms": base, "during_ms": during}

    logging.getLogger("kerneltrace").setLevel(logging.WARNING)
    try:
        return asyncio.run(measure())
    finally:
        RequestTracer.shared(TracerOptions(backend=backend)).stop()


def _until(end: float) -> Any:
    return lambda: time.perf_counter() >= end
