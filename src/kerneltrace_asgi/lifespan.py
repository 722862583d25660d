"""Start and stop with the application: beside its lifespan unseen, or inside it by choice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from kerneltrace_asgi.boot import Boot
from kerneltrace_asgi.protocol import KEY, ASGIApp, Message, Receive, Scope, Send
from kerneltrace_core import KernelTraceError
from kerneltrace_core.requests import TracerOptions, resolve

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from kerneltrace_core.requests import RequestTracer

__all__ = ["kerneltrace_lifespan", "serve_lifespan"]


@asynccontextmanager
async def kerneltrace_lifespan(app: Any = None, **options: Any) -> AsyncIterator[RequestTracer]:
    """Trace while the block runs, for use inside an application's own lifespan.

    The tracer is started on a thread and awaited, less than 100 ms as a rule, so that the first
    request is traced; it is the one that KernelTraceMiddleware uses, and is put at
    ``app.state.kerneltrace`` where ``app`` has a state. ``options`` are the tracer's: enabled,
    required, backend, probes, syscalls, share, drop_capabilities; spell them out here or at the
    middleware, not in both.

    With ``required=True`` raises KernelTraceError when the kernel cannot be traced, and its kind
    OptionError for a bad option; else falls back, or passes the option over, with one WARNING.
    """
    boot = Boot(resolve(TracerOptions, options, forgiving=True), options)
    tracer = await boot.now()
    state = getattr(app, "state", None)
    if state is not None:
        setattr(state, KEY, tracer)
    try:
        yield tracer
    finally:
        boot.stop()


async def serve_lifespan(
    boot: Boot, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run the application's lifespan and only look on: what it does and raises stays the same.

    The exception is ``required``: then the tracer is started before the application sees its
    startup, and if that fails the server is told to stop, with the reason.
    """
    if boot.required:
        message = await receive()
        if message["type"] == "lifespan.startup":
            try:
                await boot.now()
            except KernelTraceError as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
        receive = _replay(message, receive)
    seen: set[str] = set()

    async def watched_receive() -> Message:
        message = await receive()
        seen.add(message["type"])
        # Options that only this middleware has cannot change any more: use the time.
        if boot.explicit and message["type"] == "lifespan.startup":
            boot.soon()
        return message

    def watched_send(message: Message) -> Awaitable[None]:
        # Not sooner: the application's own startup may bring the tracer's options.
        if message["type"] == "lifespan.startup.complete":
            boot.soon()
        return send(message)

    try:
        await app(scope, watched_receive, watched_send)
    except Exception:
        # It knows no lifespan (Django, for one): a server that goes on will send requests.
        if not seen:
            boot.soon()
        raise
    finally:
        if "lifespan.shutdown" in seen:
            # On this thread: the server ends the loop, and whatever is awaited, from here on.
            boot.stop()


def _replay(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
