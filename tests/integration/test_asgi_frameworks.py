"""The middleware in real frameworks, on the real kernel: known work in, exact numbers out."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import APIRouter, FastAPI
from litestar import Litestar, get
from litestar import Request as LitestarRequest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from kerneltrace_asgi import KernelTraceMiddleware, kerneltrace_lifespan
from kerneltrace_core import PrivilegeError
from kerneltrace_core.requests import RequestTracer

BYTES = 512
REQUESTS = 24
Finished = dict[str, Any]


@pytest.fixture(autouse=True)
def _bpf(require: Callable[..., None]) -> None:
    require("thread_registration")


@pytest.fixture
def finished() -> Finished:
    """Return the stats of finished requests, by path."""
    return {}


def read(times: int) -> None:
    """Read so many times so many bytes."""
    descriptor = os.open("/dev/zero", os.O_RDONLY)
    for _ in range(times):
        os.read(descriptor, BYTES)
    os.close(descriptor)


async def read_in_turns(times: int) -> None:
    """Read, and let others run in between."""
    descriptor = os.open("/dev/zero", os.O_RDONLY)
    for _ in range(times):
        os.read(descriptor, BYTES)
        await asyncio.sleep(0)
    os.close(descriptor)


def reads(stats: Any) -> int:
    """Return how many reads of ours were charged; fail if it is not whole reads."""
    times, rest = divmod(stats.read_bytes, BYTES)
    assert not rest
    return times


def client_of(app: Any, backend: Any = "asyncio") -> Any:
    """Return starlette's test client, whose newer versions ask for another httpx."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from starlette.testclient import TestClient
    return TestClient(app, backend=backend)


def starlette_app(**options: Any) -> Starlette:
    async def turns(request: Request) -> PlainTextResponse:
        await read_in_turns(request.path_params["n"])
        return PlainTextResponse("ok")

    async def tasks(request: Request) -> PlainTextResponse:
        n = request.path_params["n"]
        await asyncio.gather(read_in_turns(n), read_in_turns(n), asyncio.to_thread(read, n))
        return PlainTextResponse("ok")

    def thread(request: Request) -> PlainTextResponse:
        read(request.path_params["n"])
        return PlainTextResponse("ok")

    async def stream(request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(3):
                await read_in_turns(request.path_params["n"])
                yield b"part"

        return StreamingResponse(parts())

    async def live(request: Request) -> PlainTextResponse:
        before = request.state.kerneltrace.read_bytes
        read(3)
        return PlainTextResponse(str(request.state.kerneltrace.read_bytes - before))

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await read_in_turns(int(text))
            await websocket.send_text(text)

    async def through(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app = Starlette(
        routes=[
            Route("/turns/{n:int}", turns),
            Route("/tasks/{n:int}", tasks),
            Route("/thread/{n:int}", thread),
            Route("/stream/{n:int}", stream),
            Route("/live", live),
            Mount("/below", routes=[Route("/turns/{n:int}", turns)]),
            WebSocketRoute("/echo", echo),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=through)],
    )
    app.add_middleware(KernelTraceMiddleware, required=True, **options)
    return app


def collect(finished: Finished) -> Callable[[Any, Any], None]:
    return lambda scope, stats: finished.update({scope["path"]: stats})


@asynccontextmanager
async def in_process(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        kerneltrace_lifespan(required=True),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


async def ask_all(client: httpx.AsyncClient, path: str, warm_up: int = 100) -> None:
    """Ask for each number once, all at the same time; imports and caches were filled before."""
    (await client.get(f"{path}/{warm_up}")).raise_for_status()
    answers = await asyncio.gather(*(client.get(f"{path}/{n}") for n in range(REQUESTS)))
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(
    ("path", "factor"),
    [("/turns", 1), ("/below/turns", 1), ("/tasks", 3), ("/thread", 1), ("/stream", 3)],
)
def test_starlette_charges_each_request_its_own_reads(
    finished: Finished, path: str, factor: int
) -> None:
    async def main() -> None:
        async with in_process(starlette_app(on_request=collect(finished))) as client:
            await ask_all(client, path)

    asyncio.run(main())

    assert {n: reads(finished[f"{path}/{n}"]) for n in range(REQUESTS)} == {
        n: factor * n for n in range(REQUESTS)
    }


def test_a_handler_reads_its_own_numbers_while_it_runs() -> None:
    async def main() -> str:
        async with in_process(starlette_app()) as client:
            return (await client.get("/live")).text

    assert asyncio.run(main()) == str(3 * BYTES)


def test_fastapi_charges_coroutines_and_plain_functions(finished: Finished) -> None:
    app, router = FastAPI(), APIRouter(prefix="/api")

    @router.get("/turns/{n}")
    async def turns(n: int) -> int:
        await read_in_turns(n)
        return n

    @router.get("/thread/{n}")
    def thread(n: int) -> int:
        read(n)
        return n

    app.include_router(router, prefix="/v1")

    app.add_middleware(KernelTraceMiddleware, required=True, on_request=collect(finished))

    async def main() -> None:
        async with in_process(app) as client:
            await ask_all(client, "/v1/api/turns")
            await ask_all(client, "/v1/api/thread")

    asyncio.run(main())

    for path in ("/v1/api/turns", "/v1/api/thread"):
        assert [reads(finished[f"{path}/{n}"]) for n in range(REQUESTS)] == list(range(REQUESTS))
    assert finished["/v1/api/turns/5"].threads == 0
    assert finished["/v1/api/thread/5"].threads >= 1


def litestar_routes() -> list[Any]:
    @get("/turns/{n:int}")
    async def turns(request: LitestarRequest[Any, Any, Any]) -> str:
        await read_in_turns(request.path_params["n"])
        return "ok"

    @get("/thread/{n:int}", sync_to_thread=True)
    def thread(request: LitestarRequest[Any, Any, Any]) -> str:
        read(request.path_params["n"])
        return "ok"

    return [turns, thread]


@pytest.mark.parametrize("way", ["around", "inside"])
def test_litestar_charges_each_request_its_own_reads(finished: Finished, way: str) -> None:
    options = {"required": True, "on_request": collect(finished)}
    if way == "around":
        app: Any = KernelTraceMiddleware(
            Litestar(litestar_routes(), openapi_config=None, logging_config=None), **options
        )
    else:
        app = Litestar(
            litestar_routes(),
            openapi_config=None,
            logging_config=None,
            middleware=[lambda app: KernelTraceMiddleware(app, **options)],
        )

    async def main() -> None:
        async with in_process(app) as client:
            await ask_all(client, "/turns")
            await ask_all(client, "/thread")

    asyncio.run(main())

    for path in ("/turns", "/thread"):
        assert [reads(finished[f"{path}/{n}"]) for n in range(REQUESTS)] == list(range(REQUESTS))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_test_client_runs_the_lifespan_and_traces(finished: Finished, backend: Any) -> None:
    def work(request: Request) -> PlainTextResponse:
        read(request.path_params["n"])
        return PlainTextResponse("ok")

    async def work_here(request: Request) -> PlainTextResponse:
        return work(request)

    app = Starlette(routes=[Route("/thread/{n:int}", work), Route("/loop/{n:int}", work_here)])
    app.add_middleware(KernelTraceMiddleware, required=True, on_request=collect(finished))

    for _ in range(2):  # a second life of the same application is traced as well
        finished.clear()
        with client_of(app, backend) as client:
            for path in ("thread", "loop"):
                for n in (9, 0, 7):
                    assert client.get(f"/{path}/{n}").status_code == 200

        for path in ("thread", "loop"):
            assert [reads(finished[f"/{path}/{n}"]) for n in (0, 7)] == [0, 7]


def test_the_test_client_reports_each_message_of_a_websocket() -> None:
    seen: list[tuple[str, int]] = []
    app = starlette_app(on_request=lambda _, stats: seen.append((stats.phase, reads(stats))))

    with client_of(app) as client, client.websocket_connect("/echo") as websocket:
        for n in (5, 0, 11):
            websocket.send_text(str(n))
            assert websocket.receive_text() == str(n)

    assert seen[1:] == [("message", 5), ("message", 0), ("message", 11), ("response", 16)]


def test_without_privileges_in_reach_the_same_application_is_counted_from_proc(
    finished: Finished,
) -> None:
    app = Starlette(routes=[Route("/turns/{n:int}", lambda _: PlainTextResponse("ok"))])
    app.add_middleware(
        KernelTraceMiddleware, backend="procfs", required=True, on_request=collect(finished)
    )

    with client_of(app) as client:
        client.get("/turns/1")

    stats = finished["/turns/1"]
    assert stats.backend == "procfs"
    assert stats.wall_ns > 0
    assert stats.tcp_retransmits is None


# ---- a real server ---------------------------------------------------------------


@contextmanager
def serving(app: Any, **config: Any) -> Iterator[int]:
    """Serve on a port of this machine until the block ends; a failed startup raises."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **config))
    ready = threading.Event()
    startup = server.startup

    async def startup_and_tell(sockets: Any = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = startup_and_tell  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, args=([listener],), name="server")
    thread.start()
    try:
        assert ready.wait(30)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


SERVERS = [
    pytest.param({"http": http, "loop": loop}, id=f"{http}-{loop}")
    for http in ("h11", "httptools")
    for loop in ("asyncio", "uvloop")
]


@pytest.mark.parametrize("config", SERVERS)
def test_kept_and_pipelined_connections_never_carry_a_request_into_the_next(
    finished: Finished, config: dict[str, Any]
) -> None:
    numbers = [3, 0, 8, 1, 13, 2, 5]
    app = starlette_app(on_request=collect(finished))

    with serving(app, **config) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as kept:
        kept.get("/turns/100").raise_for_status()
        for n in numbers:
            kept.get(f"/turns/{n}").raise_for_status()
            kept.get(f"/thread/{n}").raise_for_status()
        pipelined = "".join(
            f"GET /tasks/{n} HTTP/1.1\r\nHost: t\r\n"
            + ("Connection: close\r\n" if n == numbers[-1] else "")
            + "\r\n"
            for n in numbers
        )
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            connection.sendall(pipelined.encode())
            answers = b"".join(iter(lambda: connection.recv(65536), b""))

    assert answers.count(b"HTTP/1.1 200 OK") == len(numbers)
    for path, factor in (("/turns", 1), ("/thread", 1), ("/tasks", 3)):
        charged = {n: reads(finished[f"{path}/{n}"]) for n in numbers}
        assert charged == {n: factor * n for n in numbers}, path


@pytest.mark.parametrize("config", SERVERS)
def test_requests_at_the_same_time_are_charged_apart(
    finished: Finished, config: dict[str, Any]
) -> None:
    app = starlette_app(on_request=collect(finished), server_timing=True)

    async def ask(port: int) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await ask_all(client, "/stream")
            answer = await client.get("/turns/1")
            assert answer.headers["server-timing"].startswith("kt-cpu;dur=")

    with serving(app, **config) as port:
        asyncio.run(ask(port))

    assert [reads(finished[f"/stream/{n}"]) for n in range(REQUESTS)] == [
        3 * n for n in range(REQUESTS)
    ]


def test_a_websocket_on_a_real_server_reports_each_message() -> None:
    seen: list[tuple[str, int]] = []
    app = starlette_app(on_request=lambda _, stats: seen.append((stats.phase, reads(stats))))

    config = {"ws": "websockets-sansio"}
    with serving(app, **config) as port, connect(f"ws://127.0.0.1:{port}/echo") as websocket:
        for n in (4, 9):
            websocket.send(str(n))
            assert websocket.recv() == str(n)

    assert seen[1:] == [("message", 4), ("message", 9), ("response", 13)]


def test_a_server_refuses_to_start_with_the_reason_when_tracing_is_required_and_impossible(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_tracer: RequestTracer) -> None:
        raise PrivilegeError("load programs: permission denied (add CAP_BPF)")

    monkeypatch.setattr(RequestTracer, "start", refuse)
    server = uvicorn.Server(uvicorn.Config(starlette_app(), port=0, log_level="warning"))

    async def main() -> None:
        with pytest.raises(SystemExit):
            await server.serve()

    # uvicorn says it to its own logger, which does not propagate.
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    asyncio.run(main())

    assert "load programs: permission denied (add CAP_BPF)" in caplog.text
