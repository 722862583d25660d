"""Django on the real kernel, in process: each request's own number of reads, nobody else's."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from django_site import MIDDLEWARE, configure
from kerneltrace_core.requests import KernelStats, RequestTracer
from kerneltrace_django.settings import options
from kerneltrace_django.signals import kernel_request_finished

configure()

BYTES = 512
PARTS = 3
ADDED = 2  # reads by each middleware of the user

pytestmark = [
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
    # Django leaves the request's body open when streamed content fails.
    pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning"),
    pytest.mark.deadline(180),
]

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


# ---- views: each does n reads, in its own way --------------------------------------------

View = Callable[..., Any]


@dataclass
class Way:
    """One way to do n reads: how many more they become, and where it works."""

    view: View
    reads: Callable[[int], int] = lambda n: n
    wsgi: bool = True
    fails: bool = False


WAYS: dict[str, Way] = {}


def way(**facts: Any) -> Callable[[View], View]:
    def register(view: View) -> View:
        WAYS[view.__name__] = Way(view, **facts)
        return view

    return register


@way()
def sync_view(request: Any, n: int, number: int) -> HttpResponse:
    read_slowly(n)
    return HttpResponse("x")


@way()
async def async_view(request: Any, n: int, number: int) -> HttpResponse:
    await read_in_turns(n)
    return HttpResponse("x")


@way(reads=lambda n: 3 * n)
async def tasks(request: Any, n: int, number: int) -> HttpResponse:
    await asyncio.gather(read_in_turns(n), read_in_turns(n), asyncio.to_thread(read_slowly, n))
    return HttpResponse("x")


@way(reads=lambda n: 3 * n)
async def threads_of_async(request: Any, n: int, number: int) -> HttpResponse:
    await sync_to_async(read_slowly)(n)
    await sync_to_async(read_slowly, thread_sensitive=False)(n)
    await asyncio.get_running_loop().run_in_executor(None, read_slowly, n)
    return HttpResponse("x")


@way(reads=lambda n: 2 * n)
def async_of_sync(request: Any, n: int, number: int) -> HttpResponse:
    async_to_sync(read_in_turns)(n)

    async def back_again() -> None:
        await sync_to_async(read_slowly)(n)

    async_to_sync(back_again)()
    return HttpResponse("x")


@way(reads=lambda n: 3 * n)
def threads_of_sync(request: Any, n: int, number: int) -> HttpResponse:
    worker = threading.Thread(target=read_slowly, args=(n,))
    worker.start()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(read_slowly, n).result()
    worker.join()
    asyncio.run(read_in_turns(n))
    return HttpResponse("x")


@way(reads=lambda n: (PARTS + 2) * n)
def sync_stream(request: Any, n: int, number: int) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        try:
            for _ in range(PARTS):
                read_slowly(n)
                yield b"part"
        finally:
            read(n)

    read(n)
    return StreamingHttpResponse(parts())


@way(reads=lambda n: (PARTS + 2) * n)
async def async_stream(request: Any, n: int, number: int) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        try:
            for _ in range(PARTS):
                await read_in_turns(n)
                yield b"part"
        finally:
            await read_in_turns(n)

    await read_in_turns(n)
    return StreamingHttpResponse(parts())


@way(reads=lambda n: (PARTS + 1) * 2 * n)
async def async_stream_with_tasks(request: Any, n: int, number: int) -> StreamingHttpResponse:
    async def work() -> None:
        await asyncio.gather(read_in_turns(n), sync_to_async(read_slowly)(n))

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(PARTS):
            await work()
            yield b"part"

    await work()
    return StreamingHttpResponse(parts())


@way(reads=lambda n: (PARTS + 1) * n)
async def sync_stream_of_async(request: Any, n: int, number: int) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        for _ in range(PARTS):
            read_slowly(n)
            yield b"part"

    await read_in_turns(n)
    return StreamingHttpResponse(parts())


@way()
def sync_error(request: Any, n: int, number: int) -> HttpResponse:
    read_slowly(n)
    raise KeyError(number)


@way()
async def async_error(request: Any, n: int, number: int) -> HttpResponse:
    await read_in_turns(n)
    raise KeyError(number)


@way(reads=lambda n: 2 * n, fails=True)
def sync_stream_error(request: Any, n: int, number: int) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        read_slowly(n)
        yield b"part"
        read_slowly(n)
        raise KeyError(number)

    return StreamingHttpResponse(parts())


@way(reads=lambda n: 2 * n, fails=True)
async def async_stream_error(request: Any, n: int, number: int) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        await read_in_turns(n)
        yield b"part"
        await read_in_turns(n)
        raise KeyError(number)

    return StreamingHttpResponse(parts())


urlpatterns = [
    path(f"{name}/<int:n>/<int:number>", each.view, name=name) for name, each in WAYS.items()
]


# ---- middleware of the user's -------------------------------------------------------------


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
        from asgiref.sync import markcoroutinefunction

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


# ---- how they are served, and what came of it ------------------------------------------------


@pytest.fixture(autouse=True)
def _traced(require: Callable[..., None]) -> Iterator[None]:
    require("thread_registration")
    logging.getLogger("django.request").disabled = True
    yield
    logging.getLogger("django.request").disabled = False


@contextmanager
def site(outside: list[str], inside: list[str]) -> Iterator[dict[str, KernelStats]]:
    """Set the site up, and collect the stats of each finished request by its path."""
    finished: dict[str, KernelStats] = {}

    def collect(sender: Any, request: Any, stats: KernelStats, **_: Any) -> None:
        assert request.path not in finished, "finished twice"
        finished[request.path] = stats

    chain = [*outside, MIDDLEWARE, *inside]
    kernel_request_finished.connect(collect)
    try:
        with override_settings(
            ROOT_URLCONF=HERE, MIDDLEWARE=chain, KERNELTRACE={"REQUIRED": True, "BACKEND": "bpf"}
        ):
            tracer = RequestTracer.shared(options().tracer)
            try:
                yield finished
            finally:
                tracer.stop()
    finally:
        kernel_request_finished.disconnect(collect)


def plan(count: int, names: list[str], inside: list[str]) -> dict[str, int]:
    """Return so many paths, and the reads that each of their requests will do."""
    added = ADDED * len(inside)
    paths = {}
    for number in range(count):
        name = names[number % len(names)]
        n = 1 + number * 7 % 23
        paths[f"/{name}/{n}/{number}"] = WAYS[name].reads(n) + added
    return paths


def reads(stats: KernelStats) -> int:
    """Return how many reads of ours were charged: nothing else here makes this system call."""
    assert stats.attribution == "exact"
    calls = {call.name: call.calls for call in stats.top_syscalls or ()}
    times = calls.get("pread64", 0)
    # glibc reads the number of CPUs with a thread's first allocation.
    assert 0 <= (stats.read_bytes or 0) - times * BYTES <= 8 * (stats.threads or 0) or times == 0
    return times


def wrong(expected: dict[str, int], finished: dict[str, KernelStats]) -> dict[str, Any]:
    got = {each: reads(stats) for each, stats in finished.items()}
    return {
        each: (number, got.get(each)) for each, number in expected.items() if got.get(each) != number
    }


class Client:
    """An ASGI server of one request; ``leave_after`` so many body messages it disconnects."""

    def __init__(self, app: Any, url: str, *, method: str = "GET", leave_after: int = -1) -> None:
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
        self.bodies = 0
        self.asked = False
        self.left = asyncio.Event()
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
            self.left.set()
            await asyncio.sleep(3600)
        await asyncio.sleep(0)

    async def serve(self) -> int:
        try:
            await self.app(self.scope, self.receive, self.send)
        except KeyError:
            if not WAYS[self.scope["path"].split("/")[1]].fails:
                raise
        return self.status


async def serve_all(urls: list[str], concurrency: int) -> None:
    app = ASGIHandler()
    gate = asyncio.Semaphore(concurrency)

    async def one(url: str) -> None:
        async with gate:
            await Client(app, url).serve()

    await asyncio.gather(*(one(url) for url in urls))
    await settled()


async def settled() -> None:
    """Let what was scheduled at the end of requests run."""
    for _ in range(3):
        await asyncio.sleep(0.001)


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
    except KeyError:
        if not WAYS[url.split("/")[1]].fails:
            raise
    finally:
        response.close()
    return status[0]


@pytest.mark.parametrize("concurrency", [1, 64, 240])
@pytest.mark.parametrize("chain", CHAINS)
def test_under_asgi_each_request_has_its_own_reads(chain: str, concurrency: int) -> None:
    outside, inside = CHAINS[chain]
    expected = plan(max(concurrency, 2 * len(WAYS)), list(WAYS), inside)

    with site(outside, inside) as finished:
        # What Python imports and looks up but once is read by the first to come.
        asyncio.run(serve_all(list(plan(len(WAYS), list(WAYS), [])), 1))
        finished.clear()
        asyncio.run(serve_all(list(expected), concurrency))

    assert wrong(expected, finished) == {}
    assert len(finished) == len(expected)


@pytest.mark.parametrize("concurrency", [1, 8, 64])
@pytest.mark.parametrize("chain", ["alone", "sync_only_inside", "async_only_inside"])
def test_under_wsgi_each_request_has_its_own_reads(chain: str, concurrency: int) -> None:
    outside, inside = CHAINS[chain]
    names = [name for name, each in WAYS.items() if each.wsgi]
    expected = plan(max(concurrency, 2 * len(names)), names, inside)

    with site(outside, inside) as finished:
        app = WSGIHandler()
        for url in plan(len(names), names, []):
            call_wsgi(app, url)
        finished.clear()
        with ThreadPoolExecutor(concurrency) as server:
            list(server.map(lambda url: call_wsgi(app, url), expected))

    assert wrong(expected, finished) == {}
    assert len(finished) == len(expected)
