"""The application under test: a route for each construct, plain, mounted and below middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import Depends, FastAPI
from fastapi import Request as FastRequest
from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from integration.truth.constructs import CONSTRUCTS, EXTRA, part, pause
from integration.truth.work import Job
from kerneltrace_asgi import KernelTraceMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.truth.matrix import Row

# What stands before a construct's route; each request goes through one of them.
PREFIXES = ("", "/below", "/mounted")
HOST = "http://truth"


class Below(BaseHTTPMiddleware):
    """Starlette's way of middleware: the application below runs in a task of its own."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        await pause()
        response: Response = await call_next(request)
        return response


class Routes:
    """Endpoints that find their job by the number in the path."""

    def __init__(self, rows: dict[int, Row], inner: Callable[[], Row]) -> None:
        self._rows = rows
        self._inner = inner
        self.app: Any = None

    def _row(self, request: Any) -> Row:
        return self._rows[int(request.path_params["number"])]

    def _job(self, request: Any) -> Job:
        return self._row(request).job

    async def work(self, request: Request) -> Response:
        body = CONSTRUCTS[request.path_params["name"]].body
        assert body is not None
        await body(self._job(request))
        return PlainTextResponse("done")

    def def_endpoint(self, request: Request) -> Response:
        job = self._job(request)
        job.units(job.planned)
        return PlainTextResponse("done")

    async def stream(self, request: Request) -> Response:
        job = self._job(request)

        async def body() -> AsyncIterator[bytes]:
            for number in range(job.planned):
                job.unit()
                if number % 10 == 0:
                    await pause()
                    yield b"more"

        return StreamingResponse(body())

    def sync_stream(self, request: Request) -> Response:
        job = self._job(request)

        def body() -> Iterator[bytes]:
            for number in range(job.planned):
                job.unit()
                if number % 10 == 0:
                    yield b"more"

        return StreamingResponse(body())

    async def background(self, request: Request) -> Response:
        job = self._job(request)
        return PlainTextResponse("done", background=BackgroundTask(part, job, job.planned))

    async def sync_background(self, request: Request) -> Response:
        job = self._job(request)
        return PlainTextResponse("done", background=BackgroundTask(job.units, job.planned))

    async def failing(self, request: Request) -> Response:
        job = self._job(request)
        await part(job, job.planned)
        raise KeyError("the application's own")

    async def disconnected(self, request: Request) -> Response:
        row = self._row(request)
        await part(row.job, row.job.planned)
        row.reached.set()
        try:
            await anyio.sleep_forever()
        finally:
            row.job.units(EXTRA)

    async def client(self, request: Request) -> Response:
        """Ask this same application twice, in process, and work meanwhile."""
        row = self._row(request)
        paths = [self._inner().path for _ in range(2)]

        async def ask(path: str) -> None:
            transport = ASGITransport(app=self.app)
            async with AsyncClient(transport=transport, base_url=HOST, trust_env=False) as client:
                assert (await client.get(path)).status_code == 200

        half = row.job.planned // 2
        async with anyio.create_task_group() as group:
            group.start_soon(ask, paths[0])
            await part(row.job, half)
        await ask(paths[1])
        await part(row.job, row.job.planned - half)
        return PlainTextResponse("done")

    def routes(self) -> list[Route]:
        own = ("def_endpoint", "stream", "sync_stream", "background", "sync_background")
        more = ("failing", "disconnected", "client")
        return [
            *(Route(f"/{name}/{{number:int}}", getattr(self, name)) for name in (*own, *more)),
            Route("/work/{name}/{number:int}", self.work),
        ]

    def fastapi(self) -> FastAPI:
        app = FastAPI()

        def job_of(request: FastRequest) -> Job:
            job = self._job(request)
            job.unit()
            return job

        async def later(request: FastRequest) -> AsyncIterator[None]:
            job = self._job(request)
            job.unit()
            yield
            await part(job, job.planned - 4)
            job.unit()

        def sync_later(request: FastRequest) -> Iterator[None]:
            yield
            self._job(request).unit()

        @app.get("/fastapi_dependencies/{number}")
        async def fastapi_dependencies(
            job: Job = Depends(job_of),
            before: None = Depends(later),
            after: None = Depends(sync_later),
        ) -> str:
            return "done"

        @app.get("/fastapi_def/{number}")
        def fastapi_def(request: FastRequest) -> str:
            job = self._job(request)
            job.units(job.planned)
            return "done"

        return app

    def build(self, **options: Any) -> Any:
        """Return the traced application."""
        below = [Middleware(Below), Middleware(Below)]
        fast = Mount("/fast", self.fastapi())
        # A sub-application that brings its own tracing is still the same request.
        mounted = KernelTraceMiddleware(Starlette(routes=[*self.routes(), fast]))
        routes = [
            Mount("/below", Starlette(routes=[*self.routes(), fast], middleware=below)),
            Mount("/mounted", mounted),
            *self.routes(),
            fast,
        ]
        self.app = KernelTraceMiddleware(Starlette(routes=routes), **options)
        return self.app


def path_of(prefix: str, name: str, number: int) -> str:
    """Return the path that leads to a construct."""
    if name.startswith("fastapi"):
        return f"{prefix}/fast/{name}/{number}"
    kind = f"work/{name}" if CONSTRUCTS[name].body is not None else name
    return f"{prefix}/{kind}/{number}"
