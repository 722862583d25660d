"""Django on the real kernel, in process: each request's own number of reads, nobody else's."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

from django_site import configure
from integration.django_served import (
    CHAINS,
    Client,
    call_wsgi,
    read,
    read_in_turns,
    read_slowly,
    reads,
    settled,
    site,
)
from kerneltrace_core.requests import KernelStats

configure()

HERE = __name__
PARTS = 3
ADDED = 2  # reads by each middleware of the user

pytestmark = [
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
    # Django leaves the request's body open when streamed content fails.
    pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning"),
    pytest.mark.deadline(180),
]

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


# ---- how they are served, and what came of it ------------------------------------------------


@pytest.fixture(autouse=True)
def _traced(require: Callable[..., None]) -> Iterator[None]:
    require("thread_registration")
    logging.getLogger("django.request").disabled = True
    yield
    logging.getLogger("django.request").disabled = False
    gc.collect()  # the bodies left open are freed here, where their warning is expected


@contextmanager
def failing(url: str) -> Iterator[None]:
    """Let the error of a view's content pass that is there to fail."""
    try:
        yield
    except KeyError:
        if not WAYS[url.split("/")[1]].fails:
            raise


def plan(count: int, names: list[str], inside: list[str]) -> dict[str, int]:
    """Return so many paths, and the reads that each of their requests will do."""
    added = ADDED * len(inside)
    paths = {}
    for number in range(count):
        name = names[number % len(names)]
        n = 1 + number * 7 % 23
        paths[f"/{name}/{n}/{number}"] = WAYS[name].reads(n) + added
    return paths


def wrong(expected: dict[str, int], finished: dict[str, KernelStats]) -> dict[str, Any]:
    got = {each: reads(stats) for each, stats in finished.items()}
    return {
        each: (number, got.get(each))
        for each, number in expected.items()
        if got.get(each) != number
    }


async def serve_all(urls: list[str], concurrency: int) -> None:
    app = ASGIHandler()
    gate = asyncio.Semaphore(concurrency)

    async def one(url: str) -> None:
        async with gate:
            with failing(url):
                await Client(app, url).serve()

    await asyncio.gather(*(one(url) for url in urls))
    await settled()


@pytest.mark.parametrize("concurrency", [1, 64, 240])
@pytest.mark.parametrize("chain", CHAINS)
def test_under_asgi_each_request_has_its_own_reads(chain: str, concurrency: int) -> None:
    outside, inside = CHAINS[chain]
    expected = plan(max(concurrency, 2 * len(WAYS)), list(WAYS), inside)

    with site(outside, inside, HERE) as finished:
        # What Python imports and looks up but once is read by the first to come.
        asyncio.run(serve_all(list(plan(len(WAYS), list(WAYS), [])), 1))
        finished.clear()
        asyncio.run(serve_all(list(expected), concurrency))

    assert wrong(expected, finished) == {}
    assert len(finished) == len(expected)


def call(app: Any, url: str) -> None:
    with failing(url):
        call_wsgi(app, url)


@pytest.mark.parametrize("concurrency", [1, 8, 64])
@pytest.mark.parametrize("chain", ["alone", "sync_only_inside", "async_only_inside"])
def test_under_wsgi_each_request_has_its_own_reads(chain: str, concurrency: int) -> None:
    outside, inside = CHAINS[chain]
    names = [name for name, each in WAYS.items() if each.wsgi]
    expected = plan(max(concurrency, 2 * len(names)), names, inside)

    with site(outside, inside, HERE) as finished:
        app = WSGIHandler()
        for url in plan(len(names), names, []):
            call(app, url)
        finished.clear()
        with ThreadPoolExecutor(concurrency) as server:
            list(server.map(lambda url: call(app, url), expected))

    assert wrong(expected, finished) == {}
    assert len(finished) == len(expected)
