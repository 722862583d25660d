"""A FastAPI application with one route for each way in which a request spends its time.

Run it with: uvicorn --app-dir examples fastapi_app:app

The two lines that trace it are the import of KernelTraceMiddleware and add_middleware. The rest is
what an application does anyway, well or badly; `make demo` sends it traffic and shows the result.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

import upstream
from kerneltrace_asgi import KernelTraceMiddleware
from kerneltrace_core.requests import KernelStats

BLOCK = bytes(64 * 1024)
ROW = "create table if not exists visit (at real); create index if not exists at on visit (at)"

counter_lock = threading.Lock()
recent: deque[tuple[str, int, KernelStats]] = deque(maxlen=50_000)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    folder = await run_in_threadpool(prepare)
    app.state.folder = folder
    app.state.upstream = upstream.serve()
    try:
        yield
    finally:
        shutil.rmtree(folder)


def prepare() -> Path:
    """Make the folder that the routes work in."""
    # Not /tmp, which is often memory: what is written here is meant to reach a disk.
    folder = Path(tempfile.mkdtemp(prefix="kerneltrace-", dir="/var/tmp"))
    (folder / "source").write_bytes(4 * BLOCK)
    with closing(sqlite3.connect(folder / "visits.db")) as database:
        database.executescript(ROW)
    return folder


def remember(scope: Any, stats: KernelStats) -> None:
    """Keep what the kernel did for a request; KernelTraceMiddleware calls this at its end."""
    route = getattr(scope.get("route"), "path", scope["path"])
    recent.append((route, time.monotonic_ns(), stats))


app = FastAPI(lifespan=lifespan, title="kerneltrace example")
app.add_middleware(
    KernelTraceMiddleware,
    on_request=remember,
    excluded_urls=["^/-/"],
    server_timing=True,
)


@app.get("/nothing")
async def nothing() -> dict[str, str]:
    """Answer at once."""
    return {"hello": "world"}


@app.get("/cpu")
async def cpu(request: Request) -> dict[str, Any]:
    """Compute for some milliseconds, then tell what the kernel saw so far."""
    total = sum(number * number for number in range(50_000))
    stats: KernelStats = request.state.kerneltrace
    return {"total": total, "cpu_ns": stats.cpu_ns, "run_queue_ns": stats.run_queue_ns}


@app.get("/sleep")
async def sleep() -> dict[str, str]:
    """Wait as a coroutine should: others run meanwhile."""
    await asyncio.sleep(0.02)
    return {"slept": "and let others run"}


@app.get("/blocking-sleep")
async def blocking_sleep() -> dict[str, str]:
    """Make the classic mistake: nobody runs meanwhile."""
    time.sleep(0.1)
    return {"slept": "and held the event loop"}


@app.get("/file")
async def file(request: Request) -> dict[str, int]:
    """Write a file and wait for the disk, also on the event loop."""
    with tempfile.NamedTemporaryFile(dir=request.app.state.folder) as target:
        target.write(BLOCK)
        target.flush()
        os.fsync(target.fileno())
    return {"written": len(BLOCK)}


@app.get("/lock")
def lock() -> dict[str, str]:
    """Wait in a worker thread for others that hold a lock while they are slow."""
    with counter_lock:
        time.sleep(0.005)
    return {"counted": "one at a time"}


@app.get("/tasks")
async def tasks(request: Request) -> dict[str, int]:
    """Share the work among child tasks."""

    async def part(number: int) -> int:
        with open(request.app.state.folder / "source", "rb", buffering=0) as source:
            read = len(source.read(16 * 1024 * number))
        await asyncio.sleep(0.005 * number)
        return read

    return {"read": sum(await asyncio.gather(part(1), part(2), part(3)))}


@app.get("/upstream")
async def slow_upstream(request: Request) -> dict[str, str]:
    """Ask another server, which takes its time, through the event loop."""
    reader, writer = await asyncio.open_connection(*request.app.state.upstream)
    writer.write(b"hello?\n")
    answer = await reader.readline()
    writer.close()
    return {"upstream": answer.decode().strip()}


@app.get("/upstream-sync")
def slow_upstream_sync(request: Request) -> dict[str, str]:
    """Ask the same server from a worker thread, as a blocking client library does."""
    with socket.create_connection(request.app.state.upstream) as connection:
        connection.sendall(b"hello?\n")
        return {"upstream": connection.recv(100).decode().strip()}


@app.get("/sqlite")
def sqlite(request: Request) -> dict[str, int]:
    """Commit a row in a worker thread."""
    with closing(sqlite3.connect(request.app.state.folder / "visits.db")) as database:
        with database:
            database.execute("insert into visit values (?)", (time.time(),))
        (visits,) = database.execute("select count(*) from visit").fetchone()
    return {"visits": visits}


@app.get("/stream")
async def stream(request: Request) -> StreamingResponse:
    """Send a file in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        with open(request.app.state.folder / "source", "rb", buffering=0) as source:
            while piece := source.read(16 * 1024):
                yield piece
                await asyncio.sleep(0)

    return StreamingResponse(pieces(), media_type="application/octet-stream")


@app.get("/background")
async def background(request: Request, later: BackgroundTasks) -> dict[str, str]:
    """Answer first, write the log afterwards."""

    def write_log() -> None:
        with open(request.app.state.folder / "log", "ab") as log:
            log.write(b"done\n")
            log.flush()
            os.fsync(log.fileno())

    later.add_task(write_log)
    return {"log": "soon"}


@app.get("/missing")
async def missing(request: Request) -> dict[str, str]:
    """Look for a file that is not there."""
    try:
        text = (request.app.state.folder / "nowhere").read_text()
    except FileNotFoundError as error:
        raise HTTPException(404, "there is no such file") from error
    return {"text": text}


@app.get("/-/requests")
async def requests() -> list[dict[str, Any]]:
    """Return what was remembered, and forget it. Excluded from tracing."""
    found = list(recent)
    recent.clear()
    return [{"route": route, "ended_ns": ended, **told(stats)} for route, ended, stats in found]


def told(stats: KernelStats) -> dict[str, Any]:
    later = stats.background
    return {**stats.as_dict(), "background": None if later is None else later.as_dict()}
