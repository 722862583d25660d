"""Django served in process as servers do it: sites, clients, and what requests were charged."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from asgiref.sync import markcoroutinefunction
from django.test import override_settings

from django_site import MIDDLEWARE
from kerneltrace_core.requests import KernelStats, RequestTracer
from kerneltrace_django.settings import options
from kerneltrace_django.signals import kernel_request_finished

BYTES = 512
ZERO = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)


def read(times: int) -> None:
    for _ in range(times):
        os.pread(ZERO, BYTES, 0)


def read_slowly(times: int) -> None:
    for _ in range(times):
        os.pread(ZERO, BYTES, 0)
        time.sleep(0.0002)


async def read_in_turns(times: int) -> None:
    for turn in range(times):
        os.pread(ZERO, BYTES, 0)
        await asyncio.sleep(0 if turn % 3 else 0.0005)


def sync_only(get_response: Any) -> Any:
    """Be what most middleware is: nothing says that it could be async."""

    def middleware(request: Any) -> Any:
        read(1)
        response = get_response(request)
        read(1)
        return response

    return middleware


class AsyncOnly:
    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: Any) -> Any:
        read(1)
        response = await self.get_response(request)
        await read_in_turns(1)
        return response


HERE = __name__
CHAINS = {
    "alone": ([], []),
    "sync_only_inside": ([], [f"{HERE}.sync_only"]),
    "sync_only_outside": ([f"{HERE}.sync_only"], []),
    "async_only_inside": ([], [f"{HERE}.AsyncOnly"]),
    "async_around_sync": ([f"{HERE}.AsyncOnly"], [f"{HERE}.sync_only"]),
    "sync_around_async": ([f"{HERE}.sync_only"], [f"{HERE}.AsyncOnly"]),
    "back_and_forth": ([], [f"{HERE}.AsyncOnly", f"{HERE}.sync_only", f"{HERE}.AsyncOnly"]),
}


@contextmanager
def site(
    outside: list[str], inside: list[str], urls: str, **more: Any
) -> Iterator[dict[str, KernelStats]]:
    """Set the site up, and collect the stats of each finished request by its path."""
    finished: dict[str, KernelStats] = {}

    def collect(sender: Any, request: Any, stats: KernelStats, **_: Any) -> None:
        assert request.path not in finished, "finished twice"
        finished[request.path] = stats

    chain = [*outside, MIDDLEWARE, *inside]
    kernel_request_finished.connect(collect)
    try:
        keys = {"REQUIRED": True, "BACKEND": "bpf", **more}
        with override_settings(ROOT_URLCONF=urls, MIDDLEWARE=chain, KERNELTRACE=keys):
            tracer = RequestTracer.shared(options().tracer)
            tracer.start()
            try:
                yield finished
            finally:
                tracer.stop()
    finally:
        kernel_request_finished.disconnect(collect)


def reads(stats: KernelStats) -> int:
    """Return how many reads of ours were charged: nothing else here makes this system call."""
    assert stats.attribution == "exact"
    calls = {call.name: call.calls for call in stats.top_syscalls or ()}
    times = calls.get("pread64", 0)
    assert (stats.read_bytes or 0) >= times * BYTES
    return times


class Client:
    """An ASGI server of one request; after ``leave_after`` messages of the body it takes no more.

    It says that the client has left, unless it ``never_says``.
    """

    def __init__(
        self,
        app: Any,
        url: str,
        *,
        method: str = "GET",
        leave_after: int = -1,
        never_says: bool = False,
    ) -> None:
        self.app = app
        self.scope = {
            "type": "http",
            "method": method,
            "path": url,
            "raw_path": url.encode(),
            "query_string": b"",
            "headers": [(b"host", b"x")],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
            "asgi": {"version": "3.0"},
        }
        self.leave_after = leave_after
        self.never_says = never_says
        self.bodies = 0
        self.asked = False
        self.left = asyncio.Event()
        self.is_full = asyncio.Event()  # it takes no more
        self.status = 0

    async def receive(self) -> dict[str, Any]:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        if message["type"] == "http.response.body":
            self.bodies += 1
        if self.bodies == self.leave_after:
            if not self.never_says:
                self.left.set()
            self.is_full.set()
            await asyncio.sleep(3600)
        await asyncio.sleep(0)

    async def serve(self) -> int:
        await self.app(self.scope, self.receive, self.send)
        return self.status


async def settled() -> None:
    """Wait until nothing else runs on this loop: what requests left behind, when they ended."""
    for _ in range(3):
        await asyncio.sleep(0.003)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=10)


def call_wsgi(app: Any, url: str, *, method: str = "GET", parts: int = -1) -> str:
    """Serve a request as a WSGI server does; take only so many parts of its content."""
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": url,
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.input": BytesIO(),
        "wsgi.url_scheme": "http",
    }
    status: list[str] = []
    response = app(environ, lambda line, headers: status.append(line))
    try:
        content = iter(response) if parts else iter(())
        for taken, _ in enumerate(content, 1):
            if taken == parts:
                break
    finally:
        response.close()
    return status[0]
