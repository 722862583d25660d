"""Work that outlives its request: late or nobody's, and never the slot's next owner's."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from integration.truth.constructs import part
from integration.truth.matrix import charged_by
from integration.truth.work import Desk, Job
from kerneltrace_asgi import KernelTraceMiddleware
from kerneltrace_core.requests import KernelStats, RequestTracer, TracerOptions
from kerneltrace_core.requests.layout import SLOT_LATE, SLOTS

pytestmark = pytest.mark.integration

PATIENCE_SECONDS = 30.0
Handler = Callable[[KernelStats], Awaitable[None]]
Numbers = dict[str, Any]


@pytest.fixture
def tracer() -> Iterator[RequestTracer]:
    tracer = RequestTracer.shared(TracerOptions(required=True))
    tracer.start()
    yield tracer
    tracer.stop()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Any]]:
    """Return what runs a coroutine on a new event loop of a kind."""
    loop = request.param()
    yield loop.run_until_complete
    loop.close()


class Requests:
    """Serves requests, each with a handler of its own, and keeps what each was charged."""

    def __init__(self) -> None:
        self.charged: dict[int, Numbers] = {}
        self._numbers = itertools.count()
        self._app = KernelTraceMiddleware(self._serve, required=True, on_request=self._finished)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        await scope["handler"](scope["kerneltrace"])

    def _finished(self, scope: Any, stats: KernelStats) -> None:
        self.charged[scope["number"]] = charged_by(stats) or {}

    async def serve(self, handler: Handler) -> Numbers:
        """Serve one request; return what it was charged."""
        number = next(self._numbers)
        scope: Any = {"type": "http", "path": "/", "number": number, "handler": handler}

        async def no_message(*message: Any) -> Any:
            raise AssertionError("the handlers neither receive nor send")

        await self._app(scope, no_message, no_message)
        return self.charged[number]


def slot_of(stats: KernelStats) -> int:
    assert stats.record is not None
    return stats.record.value & 0x7FFFFFFF


def only(jobs: Job, numbers: Numbers) -> dict[str, int]:
    """Return of the numbers those that a job predicts."""
    return {name: numbers[name] for name in jobs.calls()}


def sums(job: Job, many: list[Numbers]) -> dict[str, int]:
    return {name: sum(numbers[name] for numbers in many) for name in job.calls()}


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.001)


def test_late_work_of_a_thread_and_a_task_never_reaches_the_slots_next_owner(
    tracer: RequestTracer, desk: Desk, run: Callable[[Any], Any]
) -> None:
    requests = Requests()
    early, by_thread, by_task = Job(desk, 11), Job(desk, 23), Job(desk, 37)
    others = [Job(desk, 50 + number) for number in range(2 * SLOTS)]
    slots: list[int] = []
    inside, go = threading.Event(), threading.Event()
    tasks: list[asyncio.Task[None]] = []
    owner: list[Job] = []

    def outlive() -> None:
        inside.set()
        assert go.wait(PATIENCE_SECONDS)
        by_thread.units(by_thread.planned)

    thread = threading.Thread(target=outlive)

    async def outlive_as_task() -> None:
        await until(go.is_set)
        await part(by_task, by_task.planned)

    async def first(stats: KernelStats) -> None:
        slots.append(slot_of(stats))
        thread.start()
        tasks.append(asyncio.create_task(outlive_as_task()))
        await part(early, early.planned)
        await until(inside.is_set)

    async def another(stats: KernelStats) -> None:
        job = others[len(slots)]
        slots.append(slot_of(stats))
        if slots[-1] != slots[0]:
            job.units(1)
            return
        owner.append(job)
        go.set()
        while not tasks[0].done() or thread.is_alive():
            await part(job, 3)
            await asyncio.sleep(0)

    async def main() -> list[Numbers]:
        charged = [await requests.serve(first)]
        while not owner:
            assert len(slots) < len(others), "the slot was never reused"
            charged.append(await requests.serve(another))
        await asyncio.wait(tasks)
        return charged

    charged = run(main())
    thread.join()

    assert only(early, charged[0]) == early.calls()
    assert charged[0]["detached"] == 2
    for job, numbers in zip(others[1:], charged[1:], strict=False):
        assert only(job, numbers) == job.calls()
        assert numbers["detached"] == 0
    assert only(owner[0], charged[-1]) == owner[0].calls()
    # The thread was in a call that began in time: late. The task's later steps are nobody's.
    late, unattributed = charged_by(tracer.late()), charged_by(tracer.unattributed())
    assert late is not None
    assert unattributed is not None
    assert only(by_thread, late) == by_thread.calls()
    assert only(by_task, unattributed) == by_task.calls()


def test_all_is_requests_and_unattributed_and_late_while_threads_outlive_theirs(
    tracer: RequestTracer, desk: Desk, run: Callable[[Any], Any]
) -> None:
    requests = Requests()
    jobs = [Job(desk, 10 + number) for number in range(300)]
    outliving = [Job(desk, 1) for _ in range(6)]
    stop = threading.Event()
    threads: list[threading.Thread] = []
    slots: list[int] = []

    def work_on(job: Job) -> None:
        while not stop.wait(0.0005):
            job.units(5)

    async def start_one(stats: KernelStats) -> None:
        slots.append(slot_of(stats))
        job = outliving[len(threads)]
        threads.append(threading.Thread(target=work_on, args=(job,)))
        threads[-1].start()
        await until(lambda: job.done)

    async def main() -> list[Numbers]:
        for _ in outliving:
            await requests.serve(start_one)

        def handler(job: Job) -> Handler:
            async def handle(stats: KernelStats) -> None:
                slots.append(slot_of(stats))
                await part(job, job.planned)

            return handle

        gate = asyncio.Semaphore(8)

        async def one(job: Job) -> Numbers:
            async with gate:
                return await requests.serve(handler(job))

        return list(await asyncio.gather(*(one(job) for job in jobs)))

    try:
        charged = run(main())
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    assert set(slots[:6]) & set(slots[6:]), "no slot of theirs was reused"
    assert [only(job, numbers) for job, numbers in zip(jobs, charged, strict=True)] == [
        job.calls() for job in jobs
    ]
    rest = [charged_by(tracer.late()) or {}, charged_by(tracer.unattributed()) or {}]
    assert rest[0]["preadv2"] > 0
    assert sums(jobs[0], [*requests.charged.values(), *rest]) == {
        name: sum(job.calls()[name] for job in (*jobs, *outliving)) for name in jobs[0].calls()
    }


def test_a_request_without_a_slot_says_so_and_takes_nobodys_numbers(
    tracer: RequestTracer, desk: Desk, run: Callable[[Any], Any]
) -> None:
    requests = Requests()
    room = SLOTS - SLOT_LATE - 1
    jobs = [Job(desk, 1 + number % 40) for number in range(room + 50)]
    opened = 0

    def handler(job: Job) -> Handler:
        async def handle(stats: KernelStats) -> None:
            nonlocal opened
            opened += 1
            # All are open at once before any works.
            await until(lambda: opened == len(jobs))
            job.units(job.planned // 2)
            await asyncio.sleep(0)
            job.units(job.planned - job.planned // 2)

        return handle

    async def main() -> list[Numbers]:
        return list(await asyncio.gather(*(requests.serve(handler(job)) for job in jobs)))

    charged = run(main())

    without = [n for n, numbers in enumerate(charged) if numbers["attribution"] == "none"]
    assert len(without) == 50
    assert tracer.health()["requests_unattributed"] == 50
    assert {charged[number]["read_bytes"] for number in without} == {None}
    for number, (job, numbers) in enumerate(zip(jobs, charged, strict=True)):
        if number not in without:
            assert only(job, numbers) == job.calls()
    nobodys = charged_by(tracer.unattributed()) or {}
    assert nobodys["preadv2"] == sum(jobs[number].done for number in without)
