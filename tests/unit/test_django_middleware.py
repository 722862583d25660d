"""KernelTraceMiddleware in Django's own handlers, with a tracer of no kernel."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.dispatch import Signal
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path

from django_site import MIDDLEWARE, configure
from fake_tracer import MS, FakeTracer, spent
from kerneltrace_core.requests.context import current
from kerneltrace_django import settings as ours
from kerneltrace_django.current import RequestStats, current_stats
from kerneltrace_django.middleware import KernelTraceMiddleware
from kerneltrace_django.recent import recent_requests, stop
from kerneltrace_django.signals import event_loop_blocked, kernel_request_finished

configure()

HERE = __name__


def hello(request: Any) -> HttpResponse:
    if request.kerneltrace.record is not None:
        spent(request.kerneltrace).spend(3 * MS)
    return HttpResponse("hello")


async def hello_async(request: Any) -> HttpResponse:
    if request.kerneltrace.record is not None:
        spent(request.kerneltrace).spend(3 * MS)
    return HttpResponse("hello")


def item(request: Any, number: int) -> HttpResponse:
    assert current_stats() is request.kerneltrace
    assert current.get() is request.kerneltrace.record
    return HttpResponse("item")


def fail(request: Any) -> HttpResponse:
    raise LookupError("the view's own")


async def cancel(request: Any) -> HttpResponse:
    raise asyncio.CancelledError


def timed(request: Any) -> HttpResponse:
    spent(request.kerneltrace).block_on("disk", 2 * MS)
    return HttpResponse("timed", headers={"Server-Timing": "db;dur=1"})


def stream(request: Any) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        spent(request.kerneltrace).spend(5 * MS)
        assert current.get() is not None
        yield b"a"
        yield b"b"

    return StreamingHttpResponse(parts())


async def stream_async(request: Any) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        spent(request.kerneltrace).spend(5 * MS)
        assert current.get() is not None
        yield b"a"
        yield b"b"

    return StreamingHttpResponse(parts())


urlpatterns = [
    path("hello", hello, name="hello"),
    path("hello_async", hello_async),
    path("items/<int:number>", item, name="item"),
    *(path(view.__name__, view) for view in (fail, cancel, timed, stream, stream_async)),
]


class RefusesInside:
    """Lets nobody through to the view."""

    def __init__(self, get_response: Any) -> None: ...

    def __call__(self, request: Any) -> HttpResponse:
        return HttpResponse("no", status=403)


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> FakeTracer:
    fake = FakeTracer()
    monkeypatch.setattr("kerneltrace_django.tracing.RequestTracer", fake)
    # These know threads only with a region of the real engine.
    for module in ("middleware", "traced"):
        monkeypatch.setattr(f"kerneltrace_django.{module}.push", lambda record: None)
        monkeypatch.setattr(f"kerneltrace_django.{module}.pop", lambda previous: None)
    return fake


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch, tracer: FakeTracer) -> Iterator[None]:
    monkeypatch.delenv("KERNELTRACE_ENABLED", raising=False)
    ours.forget()
    logging.getLogger("django.request").disabled = True
    with override_settings(ROOT_URLCONF=HERE, KERNELTRACE={}):
        yield
    logging.getLogger("django.request").disabled = False
    assert current.get() is None, "a record was left current"


Get = Callable[[str], Any]


@pytest.fixture(params=["wsgi", "asgi"])
def get(request: pytest.FixtureRequest) -> Get:
    """Return a function that gets a page, through each kind of handler."""

    async def page(url: str) -> Any:
        response = await AsyncClient(raise_request_exception=False).get(url)
        if response.streaming:
            response.parts = [part async for part in response]
        return response

    def whole(url: str) -> Any:
        response = Client(raise_request_exception=False).get(url)
        if response.streaming:
            response.parts = list(response)
        return response

    return whole if request.param == "wsgi" else lambda url: asyncio.run(page(url))


def finished(signal: Signal = kernel_request_finished) -> list[dict[str, Any]]:
    """Return a list that what the signal brings goes to."""
    told: list[dict[str, Any]] = []
    signal.connect(lambda **named: told.append(named), weak=False, dispatch_uid="test")
    return told


@pytest.fixture(autouse=True)
def _disconnect() -> Iterator[None]:
    yield
    for signal in (kernel_request_finished, event_loop_blocked):
        signal.disconnect(dispatch_uid="test")


def records(caplog: pytest.LogCaptureFixture, name: str = "kerneltrace.request") -> list[Any]:
    return [record for record in caplog.records if record.name == name]


# ---- a request ----------------------------------------------------------------------------


def test_a_request_is_traced_and_the_response_is_the_views(get: Get, tracer: FakeTracer) -> None:
    told = finished()

    assert get("/hello").content == b"hello"

    [stats] = tracer.finished
    assert stats.wall_ns == 3 * MS
    [named] = told
    assert named["stats"] is named["request"].kerneltrace is stats
    assert named["sender"] is KernelTraceMiddleware


def test_the_stats_have_room_for_the_database(get: Get, tracer: FakeTracer) -> None:
    get("/hello")

    assert isinstance(tracer.finished[0], RequestStats)
    assert tracer.finished[0].db is None


def test_an_async_request_is_stepped_on_a_loop_of_which_the_tracer_knows(
    tracer: FakeTracer,
) -> None:
    asyncio.run(ASGIServer("/hello_async")())

    assert tracer.calls == ["open", "adopt_loop", "finish"]
    assert tracer.finished[0].loop_block_max_ns == 3 * MS


def test_a_sync_request_knows_no_loop(tracer: FakeTracer) -> None:
    Client().get("/hello")

    assert tracer.calls == ["open", "finish"]
    assert tracer.finished[0].loop_block_max_ns is None


def test_an_async_chain_stays_on_the_loops_thread(tracer: FakeTracer) -> None:
    threads: list[threading.Thread] = []

    def note(**named: Any) -> None:
        threads.append(threading.current_thread())

    kernel_request_finished.connect(note, dispatch_uid="test")
    asyncio.run(ASGIServer("/hello_async")())

    assert threads == [threading.current_thread()]


class ASGIServer:
    """Serve one request, as little as possible."""

    def __init__(self, url: str, **scope: Any) -> None:
        self.scope = {"type": "http", "method": "GET", "path": url, "headers": [], **scope}
        self.asked = False

    async def __call__(self) -> None:
        await ASGIHandler()(self.scope, self.receive, self.send)

    async def receive(self) -> dict[str, Any]:
        if self.asked:
            await asyncio.sleep(3600)
        self.asked = True
        return {"type": "http.request"}

    async def send(self, message: Any) -> None: ...


def test_what_is_logged_names_route_view_and_status(
    get: Get, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "kerneltrace.request"):
        get("/items/7")

    [record] = records(caplog)
    assert (record.method, record.path, record.route) == ("GET", "/items/7", "items/<int:number>")
    assert (record.view, record.status_code, record.error_type) == ("item", 200, None)
    assert record.kernel_backend == "bpf"


def test_a_request_is_remembered_unless_none_are(get: Get) -> None:
    stop()

    get("/items/4")
    with override_settings(KERNELTRACE={"RECENT_REQUESTS": 0}):
        get("/items/5")

    assert [(each.path, each.status_code) for each in recent_requests()] == [("/items/4", 200)]
    stop()


def test_a_page_that_does_not_exist_has_no_route(
    get: Get, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "kerneltrace.request"):
        get("/nowhere")

    [record] = records(caplog)
    assert (record.route, record.view, record.status_code) == (None, None, 404)


def test_a_failing_view_is_logged_with_its_error(
    get: Get, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "kerneltrace.request"):
        assert get("/fail").status_code == 500

    [record] = records(caplog)
    assert (record.status_code, record.error_type, record.route) == (500, "LookupError", "fail")


def test_a_cancellation_ends_the_request_and_goes_on(
    tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    factory, middleware = RequestFactory(), KernelTraceMiddleware(cancel)

    async def serve() -> None:
        with pytest.raises(asyncio.CancelledError):
            await middleware(factory.get("/cancel"))

    with caplog.at_level(logging.INFO, "kerneltrace.request"):
        asyncio.run(serve())

    [record] = records(caplog)
    assert (record.status_code, record.error_type) == (None, "CancelledError")
    assert len(tracer.finished) == 1


def test_a_middleware_that_answers_for_the_view_is_measured(get: Get, tracer: FakeTracer) -> None:
    with override_settings(MIDDLEWARE=[MIDDLEWARE, f"{HERE}.RefusesInside"]):
        assert get("/hello").status_code == 403

    assert len(tracer.finished) == 1


@pytest.mark.parametrize("url", ["/stream", "/stream_async"])
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_streamed_content_is_measured_to_its_end(get: Get, tracer: FakeTracer, url: str) -> None:
    told = finished()

    assert get(url).parts == [b"a", b"b"]

    assert tracer.finished[0].wall_ns == 5 * MS
    assert len(told) == 1


def test_twice_the_middleware_is_one_request(get: Get, tracer: FakeTracer) -> None:
    with override_settings(MIDDLEWARE=[MIDDLEWARE, MIDDLEWARE]):
        get("/hello")

    assert tracer.calls.count("open") == 1


def test_inside_the_asgi_middleware_it_is_the_same_request(tracer: FakeTracer) -> None:
    outer = RequestStats.off()
    server = ASGIServer("/items/7", kerneltrace=outer)
    seen: list[Any] = []

    async def look(request: Any) -> HttpResponse:
        seen.append(request.kerneltrace)
        return await inner(request)

    async def inner(request: Any) -> HttpResponse:
        return HttpResponse("x")

    with override_settings(ROOT_URLCONF=Urls(look)):
        asyncio.run(server())

    assert seen == [outer]
    assert tracer.calls == []
    assert server.scope["path_template"] == "items/<int:number>"


class Urls:
    def __init__(self, view: Any) -> None:
        async def take(request: Any, number: int) -> Any:
            return await view(request)

        self.urlpatterns = [path("items/<int:number>", take)]


# ---- what the settings ask for -----------------------------------------------------------


def test_on_request_gets_the_request_and_its_stats(get: Get) -> None:
    told: list[Any] = []
    with override_settings(KERNELTRACE={"ON_REQUEST": lambda *both: told.append(both)}):
        get("/hello")

    [(request, stats)] = told
    assert request.path == "/hello"
    assert stats.wall_ns == 3 * MS


def test_an_excluded_url_is_served_untraced(get: Get, tracer: FakeTracer) -> None:
    with override_settings(KERNELTRACE={"EXCLUDED_URLS": ["^/hel"]}):
        assert get("/hello").content == b"hello"

    assert tracer.calls == []


def test_no_sample_is_served_untraced(get: Get, tracer: FakeTracer) -> None:
    with override_settings(KERNELTRACE={"SAMPLE_RATE": 0}):
        get("/hello")

    assert tracer.calls == []


def test_server_timing_is_added_to_what_the_view_says(get: Get) -> None:
    with override_settings(KERNELTRACE={"SERVER_TIMING": True}):
        value = get("/timed")["Server-Timing"]

    assert value.startswith("db;dur=1, kt-cpu;dur=0.000, kt-runq")
    assert 'kt-blocked;desc="disk";dur=2.000' in value


def test_server_timing_is_only_for_whom_it_is_meant(get: Get) -> None:
    setting = {"SERVER_TIMING": lambda request: request.path != "/hello"}
    with override_settings(KERNELTRACE=setting):
        assert "Server-Timing" not in get("/hello")
        assert "kt-cpu" in get("/timed")["Server-Timing"]


def test_a_step_that_held_the_loop_for_long_is_signalled(
    tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    told = finished(event_loop_blocked)
    with override_settings(KERNELTRACE={"LOOP_BLOCK_MS": 2}):
        asyncio.run(ASGIServer("/hello_async")())
        Client().get("/hello")

    [blocked] = told
    assert blocked["duration_ms"] == 3.0
    assert blocked["stats"] is tracer.finished[0]
    assert [record.event for record in records(caplog, "kerneltrace.loop")] == ["loop_block"]


def test_a_receiver_that_fails_does_not_reach_the_request(get: Get) -> None:
    def broken(**_named: Any) -> None:
        raise ZeroDivisionError

    logging.getLogger("django.dispatch").disabled = True
    kernel_request_finished.connect(broken, dispatch_uid="test")

    assert get("/hello").status_code == 200
    logging.getLogger("django.dispatch").disabled = False


def test_an_asynchronous_receiver_is_refused() -> None:
    async def receiver(**_named: Any) -> None: ...

    with pytest.raises(TypeError, match=r"it is asynchronous \(use a plain function\)"):
        kernel_request_finished.connect(receiver)


@pytest.mark.parametrize("setting", [{"SAMPLE_RATE": "no"}, {"COLOUR": 1}, "nonsense"])
def test_a_broken_setting_prevents_nothing(get: Get, tracer: FakeTracer, setting: Any) -> None:
    with override_settings(KERNELTRACE=setting):
        assert get("/hello").status_code == 200

    assert len(tracer.finished) == 1


# ---- start ---------------------------------------------------------------------------------


def test_making_a_middleware_starts_nothing(tracer: FakeTracer) -> None:
    tracer.ready = False
    KernelTraceMiddleware(hello)

    assert tracer.calls == tracer.options == []


def test_the_first_request_starts_it_and_is_served_meanwhile(get: Get, tracer: FakeTracer) -> None:
    tracer.ready = False

    assert get("/hello").content == b"hello"
    assert tracer.calls == ["start_soon"]

    tracer.ready = True
    get("/hello")
    assert "open" in tracer.calls


def test_where_it_is_required_the_first_request_waits(get: Get, tracer: FakeTracer) -> None:
    tracer.ready = False
    with override_settings(KERNELTRACE={"REQUIRED": True}):
        assert get("/hello").content == b"hello"

    assert tracer.calls[0] == "start"
    assert len(tracer.finished) == 1


def test_where_it_is_required_and_impossible_the_reason_is_raised(tracer: FakeTracer) -> None:
    tracer.ready, tracer.fails = False, True
    middleware = KernelTraceMiddleware(hello)
    middleware_async = KernelTraceMiddleware(hello_async)
    reason = r"KERNELTRACE\['REQUIRED'\]: load programs: permission denied \(add CAP_BPF\)"

    with override_settings(KERNELTRACE={"REQUIRED": True}):
        with pytest.raises(ImproperlyConfigured, match=reason):
            middleware(RequestFactory().get("/hello"))
        with pytest.raises(ImproperlyConfigured, match=reason):
            asyncio.run(middleware_async(RequestFactory().get("/hello")))


@pytest.mark.parametrize("setting", [{"ENABLED": False}, {"BACKEND": "off"}])
def test_switched_off_it_asks_for_no_tracer(
    get: Get, tracer: FakeTracer, setting: dict[str, Any]
) -> None:
    with override_settings(KERNELTRACE=setting):
        assert get("/hello").status_code == 200

    assert tracer.options == []
