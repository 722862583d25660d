"""A Starlette application with the explicit lifespan hook, structlog records and a WebSocket.

Run it with: uvicorn --app-dir examples starlette_app:app
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from kerneltrace_asgi import KernelTraceMiddleware, kerneltrace_lifespan

structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.JSONRenderer(),
    ]
)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # Awaited, so that the first request is traced as well.
    async with kerneltrace_lifespan(app):
        yield


async def live(request: Request) -> JSONResponse:
    """Read a file, then answer with what the kernel did so far."""
    with open(__file__, "rb") as source:
        source.read()
    stats = request.state.kerneltrace
    return JSONResponse({"opens": stats.opens, "read_bytes": stats.read_bytes})


async def health(request: Request) -> JSONResponse:
    """Tell how tracing goes."""
    return JSONResponse(request.app.state.kerneltrace.health())


async def echo(websocket: WebSocket) -> None:
    """Send each message back; each is a ``message`` of the connection's stats."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


app = Starlette(
    lifespan=lifespan,
    routes=[Route("/live", live), Route("/health", health), WebSocketRoute("/echo", echo)],
    middleware=[Middleware(KernelTraceMiddleware, excluded_urls=["^/health$"])],
)
