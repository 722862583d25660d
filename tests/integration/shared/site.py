"""An ASGI application that does known work, and writes down what was counted."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - or the first request reads this module's file
import json
import os
import time
from pathlib import Path
from typing import Any

from kerneltrace_asgi import KernelTraceMiddleware
from kerneltrace_core.requests import RequestTracer

FOLDER = Path(os.environ["SERVED_FOLDER"])
READ_BYTES = 512


def write(kind: str, **row: Any) -> None:
    """Append a row to this process's file, in one write."""
    row.update(pid=os.getpid(), at=time.monotonic_ns())
    line = json.dumps(row) + "\n"
    fd = os.open(FOLDER / f"{kind}-{row['pid']}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def call(times: int) -> None:
    for _ in range(times):
        os.getppid()


def read(times: int) -> None:
    """Read the beginning of this file so often."""
    fd = os.open(__file__, os.O_RDONLY)
    for _ in range(times):
        os.pread(fd, READ_BYTES, 0)
    os.close(fd)


def reads_of(times: int) -> int:
    """Return how often a request reads that makes so many calls."""
    return times % 5


async def site(scope: Any, receive: Any, send: Any) -> None:
    """Serve ``/calls/N/ID``, ``/thread/N/ID`` and ``/health``."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            # A process's first thread has malloc read how many CPUs there are.
            await asyncio.to_thread(read, 1)
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    _, kind, *rest = scope["path"].split("/")
    answer: dict[str, Any] = {"pid": os.getpid()}
    if kind == "health":
        tracer = RequestTracer._shared
        answer["health"] = tracer.health() if tracer is not None else {"backend": "none"}
    else:
        write("begun", id=rest[1])
        times = int(rest[0])
        half = times // 2
        call(half)
        await asyncio.sleep(0.001)
        if kind == "thread":
            await asyncio.to_thread(call, times - half)
            await asyncio.to_thread(read, reads_of(times))
        else:
            call(times - half)
            read(reads_of(times))
    body = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def finished(scope: Any, stats: Any) -> None:
    """Write down what the kernel counted for a request."""
    _, kind, *rest = scope["path"].split("/")
    if kind == "health":
        return
    times = int(rest[0])
    reads = reads_of(times)
    done = {"getppid": times, "pread64": reads, "read_bytes": reads * READ_BYTES}
    counted = None
    # The first ones of a process come before its tracer is ready.
    if stats.attribution == "exact":
        calls = {call.name: call.calls for call in stats.top_syscalls or ()}
        counted = {name: calls.get(name, 0) for name in ("getppid", "pread64")}
        counted["read_bytes"] = stats.read_bytes
    write("counted", id=rest[1], done=done, counted=counted, backend=stats.backend)


application = KernelTraceMiddleware(site, on_request=finished)
