"""A traced application behind a real server, which writes down what each request was charged.

python -m integration.truth.served --server uvicorn --loop uvloop --http h11 --socket FD
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any, TextIO

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from integration.truth.constructs import part
from integration.truth.matrix import charged_by
from integration.truth.work import Desk, Job
from kerneltrace_asgi import KernelTraceMiddleware
from kerneltrace_core.requests import KernelStats


class Served:
    """Routes that do as many units as their path says, in three ways."""

    def __init__(self, desk: Desk, out: TextIO) -> None:
        self._desk = desk
        self._out = out
        self._jobs: dict[str, Job] = {}
        routes = [
            Route("/ready", self.ready),
            Route("/coroutine/{units:int}", self.coroutine, methods=["GET", "POST"]),
            Route("/tasks/{units:int}", self.tasks),
            Route("/thread/{units:int}", self.thread),
        ]
        self.app = KernelTraceMiddleware(Starlette(routes=routes), on_request=self.finished)

    def _job(self, request: Request) -> Job:
        job = self._jobs[request.url.path] = Job(self._desk, request.path_params["units"])
        return job

    async def ready(self, request: Request) -> Response:
        return PlainTextResponse(request.scope["kerneltrace"].backend)

    async def coroutine(self, request: Request) -> Response:
        job = self._job(request)
        body = await request.body()
        await part(job, job.planned)
        return PlainTextResponse(str(len(body)))

    async def tasks(self, request: Request) -> Response:
        job = self._job(request)
        async with anyio.create_task_group() as group:
            group.start_soon(part, job, job.planned // 2)
            group.start_soon(part, job, job.planned - job.planned // 2)
        return PlainTextResponse("tasks")

    async def thread(self, request: Request) -> Response:
        job = self._job(request)
        await run_in_threadpool(job.units, job.planned)
        return PlainTextResponse("thread")

    def finished(self, scope: Any, stats: KernelStats) -> None:
        job = self._jobs.pop(scope["path"], None)
        if job is None:
            return
        row = {
            "path": scope["path"],
            "expected": {**job.calls(), **job.bytes_moved()},
            "response": charged_by(stats),
            "background": charged_by(stats.background),
        }
        self._out.write(json.dumps(row) + "\n")


def serve_uvicorn(app: Any, listening: socket.socket, loop: str, http: str) -> None:
    import uvicorn

    config = uvicorn.Config(app, loop=loop, http=http, lifespan="on", log_level="warning")  # type: ignore[arg-type]
    uvicorn.Server(config).run(sockets=[listening])


def serve_hypercorn(app: Any, listening: socket.socket, loop: str) -> None:
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"fd://{listening.fileno()}"]
    config.loglevel = "WARNING"
    config.accesslog = None
    if loop == "trio":
        import hypercorn.trio
        import trio

        async def run() -> None:
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                await hypercorn.trio.serve(app, config, shutdown_trigger=signals.__anext__)

        trio.run(run)
        return
    import hypercorn.asyncio

    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait)

    asyncio.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=("uvicorn", "hypercorn"), required=True)
    parser.add_argument("--loop", required=True)
    parser.add_argument("--http", default="h11")
    parser.add_argument("--socket", type=int, required=True, help="the listening descriptor")
    parser.add_argument("--out", type=Path, required=True, help="JSON, a line for each request")
    options = parser.parse_args()
    listening = socket.socket(fileno=options.socket)
    with tempfile.TemporaryDirectory() as folder, options.out.open("w", buffering=1) as out:
        served = Served(Desk(Path(folder)), out)
        if options.server == "uvicorn":
            serve_uvicorn(served.app, listening, options.loop, options.http)
        else:
            serve_hypercorn(served.app, listening, options.loop)


if __name__ == "__main__":
    main()
