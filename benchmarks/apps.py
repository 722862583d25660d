"""The do-nothing application, plain and in what is compared, and requests that need no server."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kerneltrace_asgi import KernelTraceMiddleware

# A path of each: a route that never suspends, and one that goes once around the event loop.
NEVER = "/never"
ONCE = "/once"
# Some work of its own: JSON, read and written, for about half a millisecond.
WORK = "/work"
ROWS = [{"id": number, "name": f"row {number}", "values": [number] * 8} for number in range(20)]
TIMES = 8

HEADERS = [(b"host", b"127.0.0.1:8000"), (b"accept", b"*/*"), (b"user-agent", b"none/1.0")]
BODY = b'{"ok":true}'


async def _never(request: Request) -> Response:
    del request
    return Response(BODY, media_type="application/json")


async def _once(request: Request) -> Response:
    del request
    await asyncio.sleep(0)
    return Response(BODY, media_type="application/json")


class NullExporter(SpanExporter):
    """Takes spans and does nothing with them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Do nothing."""
        del spans
        return SpanExportResult.SUCCESS


def plain() -> Any:
    """Return the application that all variants share."""
    return Starlette(routes=[Route(NEVER, _never), Route(ONCE, _once)])


def fastapi() -> Any:
    """Return the same as most people would write it."""
    app = FastAPI()

    @app.get(NEVER)
    async def never() -> dict[str, bool]:
        return {"ok": True}

    @app.get(WORK)
    async def work() -> dict[str, int]:
        return {"rows": sum(len(json.loads(json.dumps(ROWS))) for _ in range(TIMES))}

    @app.get(ONCE)
    async def once() -> dict[str, bool]:
        await asyncio.sleep(0)
        return {"ok": True}

    return app


class Nothing:
    """The least that a middleware can do."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def traced(app: Any, **options: Any) -> Any:
    """Return it with this library's middleware, and no logger that would write."""
    logging.getLogger("kerneltrace").setLevel(logging.WARNING)
    return KernelTraceMiddleware(app, **options)


def otel(app: Any, *, batch: bool) -> Any:
    """Return it with OpenTelemetry's middleware: every span recorded, exported to nowhere."""
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = NullExporter()
    provider.add_span_processor(
        BatchSpanProcessor(exporter) if batch else SimpleSpanProcessor(exporter)
    )
    return OpenTelemetryMiddleware(
        app, tracer_provider=provider, meter_provider=NoOpMeterProvider()
    )


def scope(path: str) -> dict[str, Any]:
    """Return what a server would pass for a GET."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": HEADERS,
        "state": {},
    }


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Any) -> None:
    del message


async def requests(app: Any, path: str, times: int) -> None:
    """Serve some requests, one after the other."""
    for _ in range(times):
        await app(scope(path), receive, send)
