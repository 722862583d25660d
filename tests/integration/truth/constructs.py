"""Every way in which an application hands work to tasks, threads and the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import trio
from asgiref.sync import async_to_sync, sync_to_async

from integration.truth.work import Job

Body = Callable[[Job], Awaitable[None]]


@dataclass(frozen=True)
class Construct:
    """One way, and what is to be expected of it."""

    name: str
    body: Body | None  # None: the application's routes have it
    loops: str = "any"  # "any", "asyncio" or "trio"
    phase: str = "response"  # "background", "both", or "nobody": callbacks of the event loop
    extra: int = 0  # units beyond those planned, done while it is cancelled
    threaded: bool = False  # works in other threads, which may have to wake the loop
    since: tuple[int, int] = (3, 10)

    def exists(self, loop: str) -> bool:
        """Tell whether a kind of event loop, and this interpreter, have it."""
        return self.loops in ("any", loop) and sys.version_info >= self.since


CONSTRUCTS: dict[str, Construct] = {}

pool = ThreadPoolExecutor(8, thread_name_prefix="own-pool")
chance = random.Random(7)
EXTRA = 7


def construct(**facts: Any) -> Callable[[Body], Body]:
    def register(body: Body) -> Body:
        name = body.__name__
        CONSTRUCTS[name] = Construct(name, body, **facts)
        return body

    return register


async def pause() -> None:
    await anyio.sleep(chance.choice((0, 0, 0.0005, 0.002)))


async def part(job: Job, units: int) -> None:
    """Do so many units, and let others run in between."""
    for _ in range(units):
        job.unit()
        if chance.random() < 0.15:
            await pause()


async def for_ever_then(job: Job, units: int) -> None:
    """Wait for a cancellation, and work then."""
    try:
        await anyio.sleep_forever()
    finally:
        job.units(units)


@construct()
async def coroutine(job: Job) -> None:
    await part(job, job.planned)


@construct()
async def async_generator(job: Job) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(job.planned):
            job.unit()
            if number % 5 == 0:
                await pause()
            yield number

    async for _ in numbers():
        pass


@construct()
async def async_context_manager(job: Job) -> None:
    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        await pause()
        job.unit()
        yield
        await pause()
        job.unit()

    async with around():
        await part(job, job.planned - 2)


# ---- child tasks -------------------------------------------------------------------------


@construct(loops="asyncio")
async def gather(job: Job) -> None:
    third = job.planned // 3
    await asyncio.gather(*(part(job, count) for count in (third, third, job.planned - 2 * third)))


@construct(loops="asyncio", since=(3, 11))
async def task_group(job: Job) -> None:
    half = job.planned // 2
    async with asyncio.TaskGroup() as group:
        group.create_task(part(job, half))
        group.create_task(part(job, job.planned - half), name="named")


@construct(loops="asyncio", since=(3, 11), extra=EXTRA)
async def failing_task_group(job: Job) -> None:
    async def fail() -> None:
        await part(job, job.planned)
        raise KeyError("one of the group")

    with contextlib.suppress(BaseExceptionGroup):  # noqa: F821 - as old as task groups
        async with asyncio.TaskGroup() as group:
            group.create_task(for_ever_then(job, EXTRA))
            group.create_task(fail())


@construct(loops="asyncio")
async def created_task(job: Job) -> None:
    await asyncio.create_task(part(job, job.planned))


@construct(loops="asyncio")
async def shielded_future(job: Job) -> None:
    await asyncio.shield(asyncio.ensure_future(part(job, job.planned)))


@construct(loops="asyncio", extra=EXTRA)
async def wait_for_timeout(job: Job) -> None:
    await asyncio.wait_for(part(job, job.planned), 60)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(for_ever_then(job, EXTRA), 0.001)


@construct(loops="asyncio", extra=EXTRA)
async def cancelled_task(job: Job) -> None:
    task = asyncio.create_task(for_ever_then(job, EXTRA))
    await part(job, job.planned)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@construct(extra=EXTRA)
async def anyio_task_group(job: Job) -> None:
    half = job.planned // 2
    async with anyio.create_task_group() as outer:
        outer.start_soon(part, job, half)
        outer.start_soon(part, job, job.planned - half)
        async with anyio.create_task_group() as inner:
            inner.start_soon(for_ever_then, job, EXTRA)
            await anyio.sleep(0.001)
            inner.cancel_scope.cancel()


@construct()
async def cancel_scope(job: Job) -> None:
    with anyio.move_on_after(0.001):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await part(job, job.planned)


@construct(loops="trio", extra=EXTRA)
async def nursery(job: Job) -> None:
    half = job.planned // 2
    async with trio.open_nursery() as outer:
        outer.start_soon(part, job, half)
        async with trio.open_nursery() as inner:
            inner.start_soon(for_ever_then, job, EXTRA)
            await part(job, job.planned - half)
            await trio.sleep(0.001)
            inner.cancel_scope.cancel()


# ---- threads -------------------------------------------------------------------------------


@construct(loops="asyncio", threaded=True)
async def to_thread(job: Job) -> None:
    await asyncio.to_thread(job.units, job.planned)


@construct(loops="asyncio", threaded=True)
async def default_executor(job: Job) -> None:
    await asyncio.get_running_loop().run_in_executor(None, job.units, job.planned)


@construct(loops="asyncio", threaded=True)
async def own_pool(job: Job) -> None:
    await asyncio.get_running_loop().run_in_executor(pool, job.units, job.planned)


@construct(loops="asyncio", threaded=True)
async def submitted(job: Job) -> None:
    await asyncio.wrap_future(pool.submit(job.units, job.planned))


@construct(threaded=True)
async def anyio_thread(job: Job) -> None:
    await anyio.to_thread.run_sync(job.units, job.planned)


@construct(loops="trio", threaded=True)
async def trio_thread(job: Job) -> None:
    await trio.to_thread.run_sync(job.units, job.planned)


@construct(threaded=True)
async def back_from_thread(job: Job) -> None:
    half = job.planned // 2

    def work() -> None:
        job.units(half)
        anyio.from_thread.run(part, job, job.planned - half)

    await anyio.to_thread.run_sync(work)


@construct(threaded=True)
async def thread(job: Job) -> None:
    worker = threading.Thread(target=job.units, args=(job.planned,))
    worker.start()
    await ended(worker)


@construct(threaded=True)
async def thread_subclass(job: Job) -> None:
    class Worker(threading.Thread):
        def run(self) -> None:
            job.units(job.planned)

    worker = Worker()
    worker.start()
    await ended(worker)


async def ended(worker: threading.Thread) -> None:
    """Wait for a thread as an application would that has nothing else to do."""
    while worker.is_alive():
        await anyio.sleep(0.001)


@construct(loops="asyncio", threaded=True)
async def thread_sensitive(job: Job) -> None:
    await sync_to_async(job.units)(job.planned)


@construct(loops="asyncio", threaded=True)
async def thread_insensitive(job: Job) -> None:
    await sync_to_async(job.units, thread_sensitive=False)(job.planned)


@construct(loops="asyncio", threaded=True)
async def async_in_sync(job: Job) -> None:
    await sync_to_async(lambda: async_to_sync(part)(job, job.planned))()


@construct(loops="asyncio", threaded=True)
async def sync_in_async_in_sync(job: Job) -> None:
    async def inner() -> None:
        await sync_to_async(job.units)(job.planned)

    await sync_to_async(lambda: async_to_sync(inner)())()


@construct(threaded=True)
async def loop_in_thread(job: Job) -> None:
    await anyio.to_thread.run_sync(lambda: asyncio.run(gather(job)))


@construct(threaded=True)
async def portal(job: Job) -> None:
    def work() -> None:
        with anyio.from_thread.start_blocking_portal() as opened:
            opened.call(part, job, job.planned)

    await anyio.to_thread.run_sync(work)


# ---- callbacks: the loop's own ----------------------------------------------------------------


@construct(loops="asyncio", phase="nobody")
async def timer_callback(job: Job) -> None:
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.call_later(0.001, lambda: (job.units(job.planned), over.set_result(None)))
    await over


@construct(loops="asyncio", phase="nobody")
async def done_callback(job: Job) -> None:
    loop = asyncio.get_running_loop()
    over = loop.create_future()

    def work(task: asyncio.Task[None]) -> None:
        job.units(job.planned)
        over.set_result(None)

    asyncio.create_task(asyncio.sleep(0)).add_done_callback(work)
    await over


# ---- what routes.py has ----------------------------------------------------------------------

for each in (
    Construct("def_endpoint", None, threaded=True),
    Construct("stream", None),
    Construct("sync_stream", None, threaded=True),
    Construct("background", None, phase="background"),
    Construct("sync_background", None, phase="background", threaded=True),
    Construct("failing", None),
    Construct("disconnected", None, extra=EXTRA),
    Construct("client", None),
    Construct("fastapi_def", None, threaded=True),
    Construct("fastapi_dependencies", None, phase="both", threaded=True),
):
    CONSTRUCTS[each.name] = each
