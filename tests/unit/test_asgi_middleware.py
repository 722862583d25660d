"""KernelTraceMiddleware around applications that need no server, with a tracer of no kernel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context, copy_context
from typing import Any

import anyio
import pytest

import kerneltrace_asgi
from fake_tracer import MS, FakeTracer, spent
from kerneltrace_asgi import KernelTraceMiddleware
from kerneltrace_asgi.protocol import Message, Receive, Scope, Send
from kerneltrace_core.errors import OptionError, PrivilegeError
from kerneltrace_core.requests import KernelStats, current

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
BODY: Message = {"type": "http.response.body", "body": b"ok"}

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine function on each kind of loop."""
    return lambda function: anyio.run(function, backend=request.param)


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> FakeTracer:
    fake = FakeTracer()
    monkeypatch.setattr("kerneltrace_asgi.boot.RequestTracer", fake)
    return fake


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("KERNELTRACE_ENABLED", raising=False)
    yield
    assert current.get() is None, "a record was left current"


def http(path: str = "/items/7", **more: Any) -> Scope:
    return {"type": "http", "method": "GET", "path": path, "headers": [], **more}


async def nothing() -> Message:
    raise AssertionError("nobody should receive")


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    if (stats := scope["state"]["kerneltrace"]).record is not None:
        spent(stats).spend(3 * MS)
    await send(START)
    await send(BODY)


class Sink:
    """Takes what an application sends."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        self.messages.append(message)


def serve(app: Any, scope: Scope, send: Send | None = None) -> Callable[[], Awaitable[None]]:
    return lambda: app(scope, nothing, send or Sink())


def test_the_package_exports_these_two_names() -> None:
    assert kerneltrace_asgi.__all__ == ["KernelTraceMiddleware", "kerneltrace_lifespan"]


def test_a_request_is_traced_and_its_messages_pass_unchanged(run: Run, tracer: FakeTracer) -> None:
    sink = Sink()

    run(serve(KernelTraceMiddleware(hello), http(), sink))

    assert sink.messages == [START, BODY]
    assert tracer.calls == ["adopt_loop", "open", "finish"]
    [stats] = tracer.finished
    assert stats.wall_ns == 3 * MS


def test_the_live_stats_are_in_the_state_and_the_record_is_current(
    run: Run, tracer: FakeTracer
) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stats = scope["state"]["kerneltrace"]
        seen.extend([stats.wall_ns, spent(stats).spend(5), stats.wall_ns])
        assert current.get() is stats.record
        assert len(stats.record.steps) == 1

    run(serve(KernelTraceMiddleware(app), http()))

    assert seen == [0, None, 5]


def test_a_state_that_the_server_made_is_kept(run: Run, tracer: FakeTracer) -> None:
    state = {"pool": 1}

    run(serve(KernelTraceMiddleware(hello), http(state=state)))

    assert state == {"pool": 1, "kerneltrace": tracer.finished[0]}


def test_the_response_ends_with_its_last_message_and_the_rest_is_background(
    run: Run, tracer: FakeTracer
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record = spent(scope["state"]["kerneltrace"])
        await send(START)
        await send({**BODY, "more_body": True})
        record.spend(2 * MS)
        await send(BODY)
        record.spend(7 * MS)

    run(serve(KernelTraceMiddleware(app), http()))

    [stats] = tracer.finished
    assert stats.wall_ns == 2 * MS
    assert stats.background is not None
    assert stats.background.wall_ns == 7 * MS


def test_sending_the_last_message_belongs_to_the_response(run: Run, tracer: FakeTracer) -> None:
    scope = http()

    async def slow_client(message: Message) -> None:
        if message["type"] == "http.response.body":
            spent(scope["state"]["kerneltrace"]).spend(4 * MS)

    run(serve(KernelTraceMiddleware(hello), scope, slow_client))

    assert tracer.finished[0].wall_ns == 7 * MS
    assert tracer.finished[0].background is None or not tracer.finished[0].background.wall_ns


def test_a_file_sent_by_the_server_ends_the_response_too(run: Run, tracer: FakeTracer) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.pathsend", "path": "/f"})
        spent(scope["state"]["kerneltrace"]).spend(7 * MS)

    run(serve(KernelTraceMiddleware(app), http()))

    assert tracer.finished[0].wall_ns == 0


def test_a_mounted_application_is_the_same_request(run: Run, tracer: FakeTracer) -> None:
    inner = KernelTraceMiddleware(hello)

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        await inner({**scope, "path": "/mounted"}, receive, send)

    run(serve(KernelTraceMiddleware(outer), http()))

    assert tracer.calls.count("open") == 1


def test_a_request_made_in_process_is_one_of_its_own(run: Run, tracer: FakeTracer) -> None:
    inner = KernelTraceMiddleware(hello)
    seen: list[Any] = []

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        before = current.get()
        await inner(http("/inner"), receive, Sink())
        seen.append(current.get() is before)

    run(serve(KernelTraceMiddleware(outer), http("/outer")))

    assert tracer.calls.count("open") == 2
    assert seen == [True]


def test_a_stale_record_in_the_context_is_overwritten(run: Run, tracer: FakeTracer) -> None:
    stale = FakeTracer().open().record

    async def main() -> None:
        token = current.set(stale)
        await KernelTraceMiddleware(hello)(http(), nothing, Sink())
        current.reset(token)

    run(main)

    assert tracer.calls.count("open") == 1


def test_a_reset_in_another_context_leaves_nothing_current(tracer: FakeTracer) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Pause()

    class Pause:
        def __await__(self) -> Iterator[None]:
            yield

    coroutine = KernelTraceMiddleware(app)(http(), nothing, Sink())
    one, other = copy_context(), Context()
    one.run(coroutine.send, None)
    with pytest.raises(StopIteration):
        other.run(coroutine.send, None)

    assert other.run(current.get) is None
    assert len(tracer.finished) == 1


def test_an_exception_passes_unchanged_and_the_record_is_closed(
    run: Run, tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kerneltrace.request")
    error = ValueError("bad db")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    with pytest.raises(ValueError, match="bad db") as caught:
        run(serve(KernelTraceMiddleware(app), http()))

    assert caught.value is error
    assert error.__context__ is None
    assert len(tracer.finished) == 1
    fields = caplog.records[0].__dict__
    assert (fields["status_code"], fields["error_type"]) == (500, "ValueError")


def test_a_cancellation_passes_and_is_named_in_the_log(
    tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kerneltrace.request")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.ensure_future(KernelTraceMiddleware(app)(http(), nothing, Sink()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert len(tracer.finished) == 1
    fields = caplog.records[0].__dict__
    assert (fields["status_code"], fields["error_type"]) == (None, "CancelledError")
    assert caplog.records[0].getMessage().startswith("GET /items/7 CancelledError")


def test_a_client_that_went_away_while_the_body_was_sent_is_the_applications_to_see(
    run: Run, tracer: FakeTracer
) -> None:
    async def gone(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        run(serve(KernelTraceMiddleware(hello), http(), gone))

    assert len(tracer.finished) == 1


def test_an_application_may_return_anything_to_await(run: Run, tracer: FakeTracer) -> None:
    class Awaitable_:
        def __init__(self, send: Send) -> None:
            self.send_ = send

        def __await__(self) -> Any:
            return self.send_(START).__await__()

    run(serve(KernelTraceMiddleware(lambda scope, receive, send: Awaitable_(send)), http()))

    assert len(tracer.finished) == 1


def test_a_log_record_names_the_request_by_its_route(
    run: Run, tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kerneltrace.request")

    class Route:
        path = "/items/{id}"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = Route()
        await hello(scope, receive, send)

    run(serve(KernelTraceMiddleware(app), http()))

    [record] = caplog.records
    assert record.getMessage().startswith("GET /items/{id} 200 in 3.0 ms: cpu 3.0")
    fields = record.__dict__
    about = ("method", "path", "route", "status_code", "error_type", "duration_ms")
    assert [fields[name] for name in about] == ["GET", "/items/7", "/items/{id}", 200, None, 3.0]


def test_the_hook_is_called_with_the_scope_after_the_request(run: Run, tracer: FakeTracer) -> None:
    seen: list[Any] = []
    scope = http()
    app = KernelTraceMiddleware(
        hello, on_request=lambda *args: seen.append((*args, len(tracer.finished)))
    )

    run(serve(app, scope))

    assert seen == [(scope, tracer.finished[0], 1)]


def test_a_hook_that_raises_never_reaches_the_request(
    run: Run, tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(_scope: Scope, _stats: object) -> None:
        raise RuntimeError("hook")

    sink = Sink()
    app = KernelTraceMiddleware(hello, on_request=hook, log_level="DEBUG")

    run(serve(app, http(), sink))
    run(serve(app, http()))

    assert sink.messages == [START, BODY]
    assert [each.name for each in caplog.records] == ["kerneltrace"]


def test_excluded_paths_are_served_untraced(run: Run, tracer: FakeTracer) -> None:
    app = KernelTraceMiddleware(hello, excluded_urls="^/health, metrics$")
    scopes = [http("/health/live"), http("/x/metrics"), http("/metrics/x")]

    for scope in scopes:
        run(serve(app, scope))

    backends = [scope["state"]["kerneltrace"].backend for scope in scopes]
    assert backends == ["off", "off", "bpf"]
    assert tracer.calls.count("open") == 1


def test_a_sample_rate_traces_that_part(
    run: Run, tracer: FakeTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolls = iter([0.24, 0.25, 0.9, 0.0])
    monkeypatch.setattr("random.random", lambda: next(rolls))
    app = KernelTraceMiddleware(hello, sample_rate=0.25)

    for _ in range(4):
        run(serve(app, http()))

    assert tracer.calls.count("open") == 2


def test_an_untraced_request_has_stats_of_which_all_is_unknown(
    run: Run, tracer: FakeTracer
) -> None:
    scope = http()

    run(serve(KernelTraceMiddleware(hello, sample_rate=0), scope))

    stats = scope["state"]["kerneltrace"]
    assert (stats.backend, stats.attribution, stats.wall_ns, stats.syscalls) == (
        "off", "none", None, None,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{"enabled": False}, {"backend": "off"}])
def test_switched_off_it_asks_the_tracer_nothing(
    run: Run, tracer: FakeTracer, options: dict[str, Any]
) -> None:
    sink = Sink()

    run(serve(KernelTraceMiddleware(hello, **options), http(), sink))

    assert sink.messages == [START, BODY]
    assert tracer.calls == []


def test_the_kill_switch_of_the_environment_beats_the_keyword(
    run: Run, tracer: FakeTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNELTRACE_ENABLED", "0")

    run(serve(KernelTraceMiddleware(hello, enabled=True, required=True), http()))

    assert tracer.calls == []


def test_a_bad_option_is_one_warning_and_the_application_serves(
    run: Run,
    tracer: FakeTracer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kerneltrace_core.requests.options._complained", set())
    sink = Sink()
    middleware = KernelTraceMiddleware(hello, sample_rat=0.25, slow_request_ms=7)

    told = [record.getMessage() for record in caplog.records]
    assert [text for text in told if "did you mean 'sample_rate'" in text] == told
    assert len(told) == 1
    assert (middleware.options.sample_rate, middleware.options.slow_request_ms) == (1.0, 7.0)
    run(serve(middleware, http(), sink))
    assert sink.messages


def test_a_bad_option_is_refused_where_it_is_written_if_tracing_is_required(
    tracer: FakeTracer,
) -> None:
    with pytest.raises(OptionError, match="did you mean 'sample_rate'"):
        KernelTraceMiddleware(hello, sample_rat=1, required=True)


def test_constructing_touches_no_tracer(tracer: FakeTracer) -> None:
    KernelTraceMiddleware(hello)

    assert tracer.options == []


def test_without_a_lifespan_the_first_request_starts_it_and_is_served_untraced(
    run: Run, tracer: FakeTracer
) -> None:
    tracer.ready = False
    app, sink, scope = KernelTraceMiddleware(hello), Sink(), http()

    run(serve(app, scope, sink))
    assert tracer.calls == ["start_soon"]
    assert scope["state"]["kerneltrace"].backend == "off"
    assert sink.messages == [START, BODY]

    tracer.ready = True
    run(serve(app, http()))
    assert tracer.calls == ["start_soon", "adopt_loop", "open", "finish"]


def test_a_tracer_that_is_stopped_meanwhile_serves_untraced(
    run: Run, tracer: FakeTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracer, "open", KernelStats.off)
    sink, scope = Sink(), http()

    run(serve(KernelTraceMiddleware(hello), scope, sink))

    assert sink.messages == [START, BODY]
    assert scope["state"]["kerneltrace"].backend == "off"


def test_a_tracer_that_is_required_is_awaited_by_the_first_request(
    run: Run, tracer: FakeTracer
) -> None:
    tracer.ready = False

    run(serve(KernelTraceMiddleware(hello, required=True), http()))

    assert tracer.calls == ["start", "adopt_loop", "open", "finish"]


def test_a_required_tracer_that_cannot_start_refuses_to_serve(run: Run, tracer: FakeTracer) -> None:
    tracer.ready, tracer.fails = False, True

    with pytest.raises(PrivilegeError, match="add CAP_BPF"):
        run(serve(KernelTraceMiddleware(hello, required=True), http()))


def test_server_timing_is_appended_and_the_applications_own_headers_are_kept(
    run: Run, tracer: FakeTracer
) -> None:
    sink = Sink()

    run(serve(KernelTraceMiddleware(hello, server_timing=True), http(), sink))

    (first, name), value = sink.messages[0]["headers"][0], sink.messages[0]["headers"][1]
    assert (first, name) == (b"a", b"b")
    assert value[0] == b"server-timing"
    assert value[1].startswith(b"kt-cpu;dur=3.000, kt-runq;dur=0.000")
    assert START["headers"] == [(b"a", b"b")]


def test_server_timing_may_be_decided_for_each_request(run: Run, tracer: FakeTracer) -> None:
    app = KernelTraceMiddleware(hello, server_timing=lambda scope: scope["path"] == "/yes")
    sinks = {path: Sink() for path in ("/yes", "/no")}

    for path, sink in sinks.items():
        run(serve(app, http(path), sink))

    assert [len(sink.messages[0]["headers"]) for sink in sinks.values()] == [2, 1]


def test_a_predicate_that_raises_sends_no_header(
    run: Run, tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()

    run(serve(KernelTraceMiddleware(hello, server_timing=lambda scope: scope["no"]), http(), sink))

    assert sink.messages == [START, BODY]
    assert "call server_timing" in caplog.text


def test_a_scope_of_another_kind_passes(run: Run, tracer: FakeTracer) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    run(serve(KernelTraceMiddleware(app), {"type": "webtransport"}))

    assert seen == ["webtransport"]
    assert tracer.calls == []


# ---- websockets ---------------------------------------------------------------


def websocket(*messages: Message) -> tuple[Scope, Receive]:
    waiting = [
        {"type": "websocket.connect"},
        *messages,
        {"type": "websocket.disconnect", "code": 1000},
    ]

    async def receive() -> Message:
        await anyio.lowlevel.checkpoint()
        return waiting.pop(0)

    return {"type": "websocket", "path": "/ws", "headers": []}, receive


async def worker(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept; spend as many ms as a message says, and read as many bytes; leave when told to."""
    record = spent(scope["state"]["kerneltrace"])
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["text"] == "leave":
            record.spend(1 * MS, READ_BYTES=1)
            return
        else:
            record.spend(int(message["text"]) * MS, READ_BYTES=int(message["text"]))
    record.spend(50 * MS, READ_BYTES=1000)


def text(text: str) -> Message:
    return {"type": "websocket.receive", "text": text}


def test_each_message_is_reported_apart_and_the_connection_in_total(
    run: Run, tracer: FakeTracer
) -> None:
    seen: list[tuple[Any, ...]] = []
    app = KernelTraceMiddleware(
        worker,
        on_request=lambda _, stats: seen.append((stats.phase, stats.wall_ns, stats.read_bytes)),
    )
    scope, receive = websocket(text("3"), text("40"))

    run(lambda: app(scope, receive, Sink()))

    assert seen == [
        ("message", 0, 0),  # the handshake
        ("message", 3 * MS, 3),
        ("message", 40 * MS, 40),
        ("response", 93 * MS, 1043),
    ]


def test_a_connection_ended_while_a_message_is_handled_reports_that_message(
    run: Run, tracer: FakeTracer
) -> None:
    seen: list[tuple[Any, ...]] = []
    app = KernelTraceMiddleware(
        worker, on_request=lambda _, stats: seen.append((stats.phase, stats.read_bytes))
    )
    scope, receive = websocket(text("leave"))

    run(lambda: app(scope, receive, Sink()))

    assert seen == [("message", 0), ("message", 1), ("response", 1)]


def test_a_connection_is_one_log_record_with_its_totals(
    run: Run, tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kerneltrace.request")
    scope, receive = websocket(text("3"), text("4"))

    run(lambda: KernelTraceMiddleware(worker)(scope, receive, Sink()))

    [record] = caplog.records
    fields = record.__dict__
    about = ("method", "path", "status_code", "messages", "close_code", "kernel_read_bytes")
    assert [fields[name] for name in about] == ["WEBSOCKET", "/ws", 101, 2, 1000, 1007]


def test_slow_is_said_of_messages_and_never_of_a_connection(
    run: Run, tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kerneltrace.request")
    scope, receive = websocket(text("3"), text("40"), text("4"))

    run(lambda: KernelTraceMiddleware(worker, slow_request_ms=10)(scope, receive, Sink()))

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert (record.__dict__["kernel_phase"], record.__dict__["duration_ms"]) == ("message", 40.0)


def test_a_message_that_holds_the_loop_is_warned_of_once(
    run: Run, tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    scope, receive = websocket(text("3"), text("40"), text("4"))

    run(lambda: KernelTraceMiddleware(worker, loop_block_ms=10)(scope, receive, Sink()))

    warned = [each.getMessage() for each in caplog.records if each.name == "kerneltrace.loop"]
    assert [text.split(" in one step")[0] for text in warned] == [
        "WEBSOCKET /ws held the event loop for 40.0 ms",
        "WEBSOCKET /ws held the event loop for 50.0 ms",  # after the disconnect
    ]


def test_a_refused_connection_has_the_status_that_the_client_saw(
    run: Run, tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kerneltrace.request")

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 3000})

    scope, receive = websocket()
    run(lambda: KernelTraceMiddleware(refuse)(scope, receive, Sink()))

    fields = caplog.records[0].__dict__
    assert (fields["status_code"], fields["close_code"]) == (403, 3000)


def test_an_exception_in_a_connection_passes_and_is_named(
    run: Run, tracer: FakeTracer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kerneltrace.request")

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise KeyError("room")

    scope, receive = websocket()
    with pytest.raises(KeyError):
        run(lambda: KernelTraceMiddleware(fail)(scope, receive, Sink()))

    assert caplog.records[0].__dict__["error_type"] == "KeyError"
    assert len(tracer.finished) == 1
