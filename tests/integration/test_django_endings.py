"""How a Django request can end, on the real kernel: in the middle, unread, cancelled, nested."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import django
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import Client as InnerClient
from django.urls import path

from django_site import configure
from integration.django_served import (
    CHAINS,
    Client,
    call_wsgi,
    read,
    read_in_turns,
    reads,
    settled,
    site,
)
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.requests import current, engine
from kerneltrace_django.signals import event_loop_blocked

configure()

HERE = __name__
N = 5
LISTENING = "django listens for disconnects"
MS = 1_000_000

pytestmark = [
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
    pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning"),
]


def listens() -> Support:
    if django.VERSION >= (5, 0):
        return Support.yes()
    return Support.no(f"Django {django.get_version()} does not", "Django 5")


@pytest.fixture(autouse=True)
def _bpf(require: Callable[..., None]) -> Iterator[None]:
    require("thread_registration")
    yield
    gc.collect()  # the bodies left open are freed here, where their warning is expected
    assert current.get() is None, "a record was left current"
    assert engine.read_cell() == 0, "this thread still works for somebody"


def sync_stream(request: Any) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        try:
            while True:
                read(N)
                yield b"part"
        finally:
            read(N)

    read(N)
    return StreamingHttpResponse(parts())


async def async_stream(request: Any) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        try:
            while True:
                await read_in_turns(N)
                yield b"part"
        finally:
            await read_in_turns(N)

    await read_in_turns(N)
    return StreamingHttpResponse(parts())


async def forgotten(request: Any) -> StreamingHttpResponse:
    response = await async_stream(request)
    response.myself = response  # type: ignore[attr-defined]
    return response


async def collects(request: Any) -> HttpResponse:
    read(2)
    gc.collect()
    await asyncio.sleep(0.05)
    return HttpResponse("x")


class Closing:
    """Content that is no generator, and has something to do when it is closed."""

    closed = 0

    def __iter__(self) -> Closing:
        return self

    def __next__(self) -> bytes:
        read(N)
        return b"part"

    def close(self) -> None:
        Closing.closed += 1
        read(N)


def own_iterator(request: Any) -> StreamingHttpResponse:
    return StreamingHttpResponse(Closing())


WAITING: list[str] = []


async def waits(request: Any) -> HttpResponse:
    read(N)
    WAITING.append(request.path)
    try:
        await asyncio.sleep(3600)
    finally:
        await read_in_turns(N)
    return HttpResponse("x")


def file(request: Any) -> FileResponse:
    read(N)
    return FileResponse(open(__file__, "rb"))


def nested(request: Any) -> HttpResponse:
    read(N)
    response = InnerClient().get("/inner")
    read(N)
    return HttpResponse(response.content)


def inner(request: Any) -> HttpResponse:
    read(2)
    return HttpResponse("inner")


def skipped(request: Any) -> HttpResponse:
    read(N)
    InnerClient().get("/health")
    return HttpResponse("x")


def health(request: Any) -> HttpResponse:
    assert request.kerneltrace.backend == "off"
    read(100)
    return HttpResponse("x")


def sleeps(request: Any) -> HttpResponse:
    time.sleep(0.05)
    return HttpResponse("x")


async def holds_the_loop(request: Any) -> HttpResponse:
    time.sleep(0.05)
    await asyncio.sleep(0.02)
    return HttpResponse("x")


def live(request: Any) -> HttpResponse:
    before = reads(request.kerneltrace)
    read(N)
    return HttpResponse(str(reads(request.kerneltrace) - before))


urlpatterns = [
    path(view.__name__, view)
    for view in (
        *(sync_stream, async_stream, own_iterator, waits, file, nested, inner, skipped, health),
        *(forgotten, collects),
        *(sleeps, holds_the_loop, live),
    )
]


async def cancel_others() -> None:
    """Cancel the tasks that Django 5 has for a request, which outlive a cancelled one."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    while others:
        others.pop().cancel()
    await settled()


def asgi(url: str, *, cancel_once: Callable[[Client], bool] | None = None, **how: Any) -> None:
    async def serve() -> None:
        client = Client(ASGIHandler(), url, **how)
        task = asyncio.create_task(client.serve())
        if cancel_once:
            while not cancel_once(client):
                await asyncio.sleep(0.005)
            task.cancel()
        await asyncio.wait([task])
        if cancel_once:
            await cancel_others()
        del client, task
        await settled()
        gc.collect()  # a cancelled task's traceback holds its response in a circle
        await settled()

    asyncio.run(serve())


def is_full(client: Client) -> bool:
    return client.is_full.is_set()


# ---- content that is not read to its end --------------------------------------------------


@pytest.mark.parametrize("url", ["/sync_stream", "/async_stream"])
def test_content_that_is_never_iterated_ends_with_the_close_of_the_response(url: str) -> None:
    with site([], [], HERE) as finished:
        call_wsgi(WSGIHandler(), url, method="HEAD", parts=0)

    assert reads(finished[url]) == N
    assert finished[url].record is None


def test_under_wsgi_closing_in_the_middle_runs_the_contents_finally_for_the_request() -> None:
    with site([], [], HERE) as finished:
        call_wsgi(WSGIHandler(), "/sync_stream", parts=2)

    assert reads(finished["/sync_stream"]) == N + 2 * N + N


def test_the_contents_own_close_is_called_once_and_for_the_request() -> None:
    Closing.closed = 0
    with site([], [], HERE) as finished:
        call_wsgi(WSGIHandler(), "/own_iterator", parts=3)

    assert Closing.closed == 1
    assert reads(finished["/own_iterator"]) == 3 * N + N


@pytest.mark.parametrize("chain", ["alone", "sync_only_inside", "sync_only_outside"])
def test_a_client_that_leaves_in_the_middle_ends_the_request_and_its_content(
    require: Callable[..., None], chain: str
) -> None:
    require(LISTENING, probe=listens)
    outside, inside = CHAINS[chain]
    with site(outside, inside, HERE) as finished:
        asgi("/async_stream", leave_after=2)

    assert reads(finished["/async_stream"]) == N + 2 * N + N + 2 * len(inside)


def test_a_client_that_leaves_before_the_content_ends_the_request(
    require: Callable[..., None],
) -> None:
    require(LISTENING, probe=listens)
    with site([], [], HERE) as finished:
        asgi("/async_stream", leave_after=0)

    assert reads(finished["/async_stream"]) == N


@pytest.mark.parametrize("leave_after", [0, 1, 2])
def test_a_server_that_cancels_between_parts_ends_the_request_and_its_content(
    leave_after: int,
) -> None:
    with site([], [], HERE) as finished:
        asgi("/async_stream", leave_after=leave_after, never_says=True, cancel_once=is_full)

    ended = N if leave_after else 0  # content that never began has no finally
    assert reads(finished["/async_stream"]) == N + leave_after * N + ended


def test_content_that_another_request_frees_is_closed_for_its_own() -> None:
    async def serve() -> None:
        client = Client(ASGIHandler(), "/forgotten", leave_after=2, never_says=True)
        task = asyncio.create_task(client.serve())
        await client.is_full.wait()
        task.cancel()
        await asyncio.wait([task])
        await cancel_others()
        del client, task
        await settled()
        await Client(ASGIHandler(), "/collects").serve()

    with site([], [], HERE) as finished:
        gc.collect()
        gc.disable()
        try:
            asyncio.run(serve())
        finally:
            gc.enable()

    assert reads(finished["/collects"]) == 2
    assert reads(finished["/forgotten"]) == N + 2 * N + N


# asgiref does not hand a cancellation through a sync middleware outside.
@pytest.mark.parametrize("chain", ["alone", "async_only_inside"])
def test_a_cancelled_view_is_charged_what_it_still_does(chain: str) -> None:
    outside, inside = CHAINS[chain]
    WAITING.clear()
    with site(outside, inside, HERE) as finished:
        asgi("/waits", cancel_once=lambda _: bool(WAITING))

    done = reads(finished["/waits"])
    assert done == N + N + len(inside)


# ---- files, requests within requests -------------------------------------------------------


def test_a_file_keeps_its_way_to_the_servers_sendfile() -> None:
    seen: list[Any] = []

    def wrapper(opened: Any, block_size: int) -> Any:
        seen.append(opened)
        return iter(lambda: opened.read(block_size), b"")

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/file", "SERVER_NAME": "x"}
    environ |= {"SERVER_PORT": "80", "wsgi.input": BytesIO(), "wsgi.file_wrapper": wrapper}
    with site([], [], HERE) as finished:
        content = WSGIHandler()(environ, lambda *_: None)
        assert b"".join(content) == Path(__file__).read_bytes()
        assert "/file" not in finished
        seen[0].close()

    assert reads(finished["/file"]) == N


def test_a_file_is_read_for_its_request() -> None:
    with site([], [], HERE) as finished:
        call_wsgi(WSGIHandler(), "/file")

    assert reads(finished["/file"]) == N
    assert (finished["/file"].read_bytes or 0) > 500


def test_a_request_made_in_process_has_its_own() -> None:
    with site([], [], HERE) as finished:
        call_wsgi(WSGIHandler(), "/nested")

    assert (reads(finished["/nested"]), reads(finished["/inner"])) == (2 * N, 2)
    assert (finished["/nested"].nested_ns or 0) >= (finished["/inner"].cpu_ns or 0) > 0


def test_an_excluded_request_inside_another_is_charged_to_nobody() -> None:
    with site([], [], HERE, EXCLUDED_URLS=["^/health"]) as finished:
        call_wsgi(WSGIHandler(), "/skipped")

    assert list(finished) == ["/skipped"]
    assert reads(finished["/skipped"]) == N


def test_the_stats_are_live_in_the_view() -> None:
    with site([], [], HERE):
        response = InnerClient().get("/live")

    assert response.content == str(N).encode()


# ---- time ------------------------------------------------------------------------------------


def test_under_wsgi_there_is_a_thread_and_no_event_loop() -> None:
    with site([], [], HERE) as finished:
        call_wsgi(WSGIHandler(), "/sleeps")

    stats = finished["/sleeps"]
    ledger = (stats.cpu_ns, stats.run_queue_ns, stats.blocked_ns, stats.suspended_ns)
    assert 50 * MS <= (stats.blocked_by or {})["sleep"] < 60 * MS
    assert sum(part or 0 for part in ledger) + (stats.nested_ns or 0) == stats.wall_ns
    assert stats.loop_block_max_ns is stats.loop_wait_ns is None


def test_a_view_that_holds_the_event_loop_is_signalled() -> None:
    told: list[Any] = []

    def listen(request: Any, stats: Any, duration_ms: float, **_: Any) -> None:
        told.append((request.path, duration_ms, stats.loop_block_max_ns / MS))

    event_loop_blocked.connect(listen)
    try:
        with site([], [], HERE, LOOP_BLOCK_MS=40):
            asgi("/holds_the_loop")
            call_wsgi(WSGIHandler(), "/sleeps")
    finally:
        event_loop_blocked.disconnect(listen)

    [(url, duration_ms, longest_ms)] = told
    assert url == "/holds_the_loop"
    assert 50 <= duration_ms == longest_ms < 70
