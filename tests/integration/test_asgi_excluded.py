"""What is not traced is nobody's, also inside a request that is."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from kerneltrace_asgi import KernelTraceMiddleware
from kerneltrace_core.requests import KernelStats, RequestTracer, TracerOptions

READ = 16


def http(path: str) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}


async def nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def sink(message: dict[str, Any]) -> None:
    await asyncio.sleep(0)


def test_an_excluded_request_made_inside_another_is_not_charged_to_it(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(READ))
    finished: dict[str, KernelStats] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        descriptor = os.open(file, os.O_RDONLY)
        for _ in range(scope["reads"]):
            os.pread(descriptor, READ, 0)
            await asyncio.sleep(0)
        if scope["path"] == "/outer":
            await traced({**http("/healthz"), "reads": 5}, nothing, sink)
            os.pread(descriptor, READ, 0)
        os.close(descriptor)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    traced = KernelTraceMiddleware(
        app,
        excluded_urls="healthz",
        on_request=lambda scope, stats: finished.update({scope["path"]: stats}),
    )
    tracer = RequestTracer.shared(TracerOptions())
    tracer.start()
    try:
        asyncio.run(traced({**http("/outer"), "reads": 3}, nothing, sink))
    finally:
        tracer.stop()

    if finished["/outer"].backend != "bpf":
        pytest.fail("the kernel tier runs on a kernel that has BPF")
    assert set(finished) == {"/outer"}
    assert finished["/outer"].read_bytes == 4 * READ
