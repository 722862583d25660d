"""An ASGI application that does known work, and writes down what was counted."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from kerneltrace_asgi import KernelTraceMiddleware
from kerneltrace_core.requests import RequestTracer

FOLDER = Path(os.environ["SERVED_FOLDER"])


def write(kind: str, **row: Any) -> None:
    """Append a row to this process's file, in one write."""
    row["pid"] = os.getpid()
    line = json.dumps(row) + "\n"
    fd = os.open(FOLDER / f"{kind}-{row['pid']}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def call(times: int) -> None:
    for _ in range(times):
        os.getppid()


async def site(scope: Any, receive: Any, send: Any) -> None:
    """Serve ``/calls/N/ID``, ``/thread/N/ID`` and ``/health``."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
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
        half = int(rest[0]) // 2
        call(half)
        await asyncio.sleep(0.001)
        if kind == "thread":
            await asyncio.to_thread(call, int(rest[0]) - half)
        else:
            call(int(rest[0]) - half)
    body = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def finished(scope: Any, stats: Any) -> None:
    """Write down what the kernel counted for a request."""
    _, kind, *rest = scope["path"].split("/")
    if kind == "health":
        return
    # The first ones of a process come before its tracer is ready.
    calls = {call.name: call.calls for call in stats.top_syscalls or ()}
    counted = calls.get("getppid", 0) if stats.attribution == "exact" else None
    write("counted", id=rest[1], done=int(rest[0]), counted=counted, backend=stats.backend)


application = KernelTraceMiddleware(site, on_request=finished)
