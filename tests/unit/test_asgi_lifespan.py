"""The tracer's life inside an application's: nothing of the application's own may change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from threading import current_thread, main_thread
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from fake_tracer import FakeTracer
from kerneltrace_asgi import KernelTraceMiddleware, kerneltrace_lifespan
from kerneltrace_asgi.boot import in_thread
from kerneltrace_asgi.protocol import Message, Receive, Scope, Send
from kerneltrace_core.errors import OptionError, PrivilegeError
from kerneltrace_core.requests.options import TracerOptions

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine function on each kind of loop."""
    return lambda function: anyio.run(function, backend=request.param)


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> FakeTracer:
    fake = FakeTracer(ready=False)
    monkeypatch.setattr("kerneltrace_asgi.boot.RequestTracer", fake)
    return fake


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def unsupported(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("only http")


async def raises(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    raise ValueError("bad db")


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "bad db"})


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    return


async def drive(app: Any, events: list[str]) -> list[str]:
    """Return all that a server sees of a lifespan."""
    waiting = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Message:
        await anyio.lowlevel.checkpoint()
        return waiting.pop(0)

    async def send(message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        events.append(" ".join(str(part) for part in message.values()))

    try:
        await app({"type": "lifespan", "state": {}}, receive, send)
        events.append("returned")
    except Exception as error:  # noqa: BLE001 - a server catches whatever comes
        events.append(repr(error))
    return events


def trace(run: Run, app: Any) -> list[str]:
    return run(lambda: drive(app, []))


@pytest.mark.parametrize("app", [plain, unsupported, raises, fails, silent])
@pytest.mark.parametrize(
    "options", [{}, {"backend": "bpf"}, {"required": True}, {"enabled": False}]
)
def test_a_server_sees_exactly_what_the_bare_application_does(
    run: Run, tracer: FakeTracer, app: Any, options: dict[str, Any]
) -> None:
    assert trace(run, KernelTraceMiddleware(app, **options)) == trace(run, app)


def test_it_starts_when_startup_is_complete_and_stops_after_shutdown(
    run: Run, tracer: FakeTracer
) -> None:
    events = tracer.calls

    run(lambda: drive(KernelTraceMiddleware(plain), events))

    assert events == [
        "start_soon",
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
        "stop",
        "returned",
    ]


def test_with_options_of_its_own_it_starts_while_the_application_does(
    run: Run, tracer: FakeTracer
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        tracer.calls.append("connect db")

    run(lambda: drive(KernelTraceMiddleware(app, probes=["net"]), []))

    assert tracer.calls == ["start_soon", "connect db"]
    assert tracer.options[0] == TracerOptions(probes=("sched", "net"))


def test_an_application_without_lifespan_starts_it_before_the_first_request(
    run: Run, tracer: FakeTracer
) -> None:
    trace(run, KernelTraceMiddleware(unsupported))

    assert tracer.calls == ["start_soon"]


@pytest.mark.parametrize("app", [raises, fails])
def test_an_application_that_does_not_start_starts_nothing(
    run: Run, tracer: FakeTracer, app: Any
) -> None:
    trace(run, KernelTraceMiddleware(app))

    assert tracer.calls == []


def test_switched_off_nothing_is_started(run: Run, tracer: FakeTracer) -> None:
    trace(run, KernelTraceMiddleware(plain, enabled=False))

    assert tracer.calls == []


def test_a_required_tracer_is_ready_before_the_application_sees_its_startup(
    run: Run, tracer: FakeTracer
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tracer.calls.append(f"called, ready {tracer.ready}")
        await plain(scope, receive, send)

    trace(run, KernelTraceMiddleware(app, required=True))

    assert tracer.calls[:2] == ["start", "called, ready True"]


def test_a_required_tracer_that_fails_refuses_to_start_and_says_why(
    run: Run, tracer: FakeTracer
) -> None:
    tracer.fails = True
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append("called")

    events = trace(run, KernelTraceMiddleware(app, required=True))

    assert events == [
        "lifespan.startup.failed load programs: permission denied (add CAP_BPF)",
        "returned",
    ]
    assert seen == []


def test_a_failed_start_that_is_not_required_is_not_the_servers_business(
    run: Run, tracer: FakeTracer
) -> None:
    tracer.fails = True

    assert trace(run, KernelTraceMiddleware(plain)) == trace(run, plain)


# ---- inside the application's own lifespan ----------------------------------------


def lifespan_app(hook: Callable[[], AbstractAsyncContextManager[Any]]) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        async with hook():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    return app


def test_inside_the_block_the_tracer_runs_and_is_in_the_applications_state(
    run: Run, tracer: FakeTracer
) -> None:
    app = SimpleNamespace(state=SimpleNamespace())

    async def main() -> None:
        async with kerneltrace_lifespan(app, backend="bpf") as found:
            assert found is tracer
            assert app.state.kerneltrace is tracer
            assert tracer.ready
        assert not tracer.ready

    run(main)

    assert tracer.calls == ["start", "stop"]
    assert tracer.options[0] == TracerOptions(backend="bpf")


def test_the_block_needs_no_application_with_a_state(run: Run, tracer: FakeTracer) -> None:
    async def main() -> None:
        async with kerneltrace_lifespan():
            pass
        async with kerneltrace_lifespan(object()):
            pass

    run(main)


def test_an_error_in_the_block_stops_the_tracer_and_passes(run: Run, tracer: FakeTracer) -> None:
    async def main() -> None:
        async with kerneltrace_lifespan():
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(main)

    assert tracer.calls == ["start", "stop"]


def test_a_required_tracer_that_fails_raises_into_the_lifespan(
    run: Run, tracer: FakeTracer
) -> None:
    tracer.fails = True

    async def main() -> None:
        async with kerneltrace_lifespan(required=True):
            pytest.fail("must not get here")

    with pytest.raises(PrivilegeError, match="add CAP_BPF"):
        run(main)


def test_the_block_takes_the_tracers_options_only(run: Run, tracer: FakeTracer) -> None:
    async def main() -> None:
        async with kerneltrace_lifespan(sample_rate=0.5, required=True):
            pytest.fail("must not get here")

    with pytest.raises(OptionError, match="'sample_rate': there is no such option"):
        run(main)


def test_switched_off_the_block_starts_nothing(
    run: Run, tracer: FakeTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNELTRACE_ENABLED", "0")

    async def main() -> None:
        async with kerneltrace_lifespan(required=True):
            pass

    run(main)

    assert tracer.calls == []


def test_a_plain_middleware_leaves_the_options_to_the_block(run: Run, tracer: FakeTracer) -> None:
    app = KernelTraceMiddleware(lifespan_app(lambda: kerneltrace_lifespan(backend="procfs")))

    assert trace(run, app)[-1] == "returned"

    assert tracer.options[0] == TracerOptions(backend="procfs")
    assert set(tracer.options[1:]) <= {None, tracer.options[0]}
    assert tracer.calls[0] == "start"


def test_awaiting_a_thread_leaves_the_loop_free(run: Run) -> None:
    async def main() -> Any:
        threads: list[Any] = []
        await in_thread(lambda: threads.append(current_thread()))
        return threads[0]

    assert run(main) is not main_thread()


def test_under_trio_as_a_guest_the_thread_is_trios() -> None:
    trio = pytest.importorskip("trio")
    outcome: list[Any] = []

    async def inside() -> str:
        await in_thread(lambda: None)
        return "done"

    async def host() -> None:
        finished = asyncio.Event()

        def done(result: Any) -> None:
            outcome.append(result.unwrap())
            finished.set()

        loop = asyncio.get_running_loop()
        trio.lowlevel.start_guest_run(
            inside, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done
        )
        await finished.wait()

    asyncio.run(host())

    assert outcome == ["done"]
