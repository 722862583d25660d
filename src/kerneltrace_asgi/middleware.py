"""KernelTraceMiddleware: gives every request of an ASGI application its KernelStats."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from kerneltrace_asgi.boot import Boot
from kerneltrace_asgi.lifespan import serve_lifespan
from kerneltrace_asgi.options import AsgiOptions
from kerneltrace_asgi.protocol import KEY, ASGIApp, Message, Receive, Scope, Send
from kerneltrace_asgi.route import route_of
from kerneltrace_asgi.websocket import Connection
from kerneltrace_core.exporters.report import RequestReport
from kerneltrace_core.exporters.server_timing import server_timing
from kerneltrace_core.requests import Exchange, KernelStats, current, request_here, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kerneltrace_core.requests import RequestTracer

__all__ = ["KernelTraceMiddleware"]

OFF = KernelStats.off()


class KernelTraceMiddleware:
    """Trace what the kernel does for each request; pure ASGI, for any framework and server.

    Inside a handler ``request.state.kerneltrace`` is the request's live KernelStats; at its end
    it is logged on ``kerneltrace.request``, given to ``on_request(scope, stats)`` and, when asked,
    sent as ``Server-Timing``. Put it outermost, but inside OpenTelemetry's. Keywords are the
    fields of AsgiOptions. A wrong one is logged as a WARNING and passed over; with
    ``required=True`` it raises OptionError, here.

    Tracing starts with the application's lifespan, or with the first request. Requests that come
    before it is ready are served untraced. With ``required=True`` they wait, and an application
    that cannot be traced refuses to start (without a lifespan: to serve).
    """

    if TYPE_CHECKING:
        # Type checkers accept add_middleware(...) only of a signature that names its keywords;
        # at run time an unknown one is to get an answer that names the nearest.
        def __init__(
            self,
            app: ASGIApp,
            *,
            enabled: bool = True,
            required: bool = False,
            backend: str = "auto",
            probes: Iterable[str] | str = (),
            syscalls: str = "time",
            share: str = "auto",
            drop_capabilities: bool = False,
            sample_rate: float = 1.0,
            slow_request_ms: float | None = None,
            log_level: int | str = "INFO",
            loop_block_ms: float | None = None,
            excluded_urls: Iterable[str] | str = (),
            server_timing: bool | Callable[[Scope], object] = False,
            on_request: Callable[[Scope, KernelStats], object] | None = None,
        ) -> None: ...

    else:

        def __init__(self, app, **options) -> None:
            self._set_up(app, options)

    def _set_up(self, app: ASGIApp, options: dict[str, Any]) -> None:
        self.app = app
        self.options = resolve(AsgiOptions, options, forgiving=True)
        self._boot = Boot(self.options, options)
        self._report = RequestReport(self.options)
        self._skip = self.options.skip()
        self._timing = self.options.timing()
        # The process's, not a request's; found late, since a fork may lie between.
        self._tracer: RequestTracer | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        # Every request runs through this. Calling is what costs in Python, more than in a loop
        # of nothing else once a server's own code lies between: so little is called.
        kind = scope["type"]
        # The key decides what is the same request: contexts go stale on kept connections.
        if (kind != "http" and kind != "websocket") or KEY in scope:
            if kind == "lifespan":
                await serve_lifespan(self._boot, self.app, scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        tracer = self._tracer
        if tracer is None or not tracer.ready:
            tracer = await self._start()
        if tracer is None or (self._skip is not None and self._skip(scope)):
            _attach(scope, OFF)
            serving = self.app(scope, receive, send)
            await (serving if tracer is None else _apart(tracer, serving))
            return
        tracer.adopt_loop()
        stats: KernelStats = tracer.open()
        scope[KEY] = stats  # _attach(), written out
        state = scope.get("state")
        if state is None:
            scope["state"] = {KEY: stats}
        else:
            state[KEY] = stats
        record = stats.record
        if record is None:  # stopped since, by another thread
            await self.app(scope, receive, send)
            return
        connection: Connection | None = None
        if kind == "http":
            timing = self._timing
            timed = timing is not None and timing(scope)
            exchange = Exchange(stats, send, partial(_with_server_timing, stats) if timed else None)
            send = exchange.send
        else:
            connection = Connection(scope, stats, self._report, receive, send)
            receive, send = connection.receive, connection.send
        failed: BaseException | None = None
        token = current.set(record)
        try:
            serving = self.app(scope, receive, send)
            # Nearly always a coroutine; ASGI promises no more than something to await.
            await record.step(serving if type(serving) is CoroutineType else _coroutine(serving))
        except BaseException as error:
            failed = error
            raise
        finally:
            try:
                current.reset(token)
            except ValueError:  # another context: a server that resumes us elsewhere
                current.set(None)
            if connection is not None:
                connection.finish()
            tracer.finish(stats)
            if connection is not None:
                connection.report(_name_of(failed))
            elif self._report.wanted():
                self._tell(scope, stats, exchange.status_code, failed)
            failed = None  # a traceback that holds this frame

    def _tell(
        self, scope: Scope, stats: KernelStats, status_code: Any, failed: BaseException | None
    ) -> None:
        # Whoever is outside answers an error that got here; a cancellation nobody does.
        if status_code is None and isinstance(failed, Exception):
            status_code = 500
        self._report(
            scope,
            stats,
            {
                "method": scope.get("method"),
                "path": scope["path"],
                "route": route_of(scope),
                "status_code": status_code,
                "error_type": _name_of(failed),
            },
        )

    async def _start(self) -> RequestTracer | None:
        """Return the tracer if it is ready, else have it started; wait only if it is required."""
        if not self._boot.enabled:
            return None
        if self._boot.required:
            self._tracer = await self._boot.now()
        else:
            self._tracer = self._boot.find()
            if not self._tracer.ready:
                self._tracer.start_soon()
        return self._tracer if self._tracer.ready else None


def _attach(scope: Scope, stats: KernelStats) -> None:
    scope[KEY] = stats
    state = scope.get("state")
    if state is None:
        scope["state"] = {KEY: stats}
    else:
        state[KEY] = stats


async def _apart(tracer: RequestTracer, serving: Awaitable[None]) -> None:
    """Serve a request that is passed over.

    Inside another request (pipelined, or made in process) it has a record that is reported to
    nobody: else its work would be the other's.
    """
    stats = tracer.open() if request_here() is not None else OFF
    if stats.record is None:
        await serving
        return
    token = current.set(stats.record)
    try:
        await stats.record.step(_coroutine(serving))
    finally:
        try:
            current.reset(token)
        except ValueError:
            current.set(None)
        tracer.finish(stats)


def _coroutine(serving: Awaitable[None]) -> Coroutine[Any, Any, None]:
    return serving if isinstance(serving, Coroutine) else _await(serving)


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable


def _name_of(error: BaseException | None) -> str | None:
    return None if error is None else type(error).__name__


def _with_server_timing(stats: KernelStats, message: Message) -> Message:
    value = server_timing(stats)
    if value is None:
        return message
    # A second header of the name is legal, and the application's own list stays its own.
    headers = [*message.get("headers", ()), (b"server-timing", value.encode("ascii"))]
    return {**message, "headers": headers}
