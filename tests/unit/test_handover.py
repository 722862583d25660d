"""Work that is given to threads runs as its request, whichever way it is given."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import importlib
import multiprocessing.pool
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio

from kerneltrace_core.requests import current, engine
from kerneltrace_core.requests.handover import MARK, Handover

pytestmark = pytest.mark.unit

THREADS, SLOTS, SLOT_BYTES = 64, 64, 128
SLOTS_OFFSET = THREADS * 64


@pytest.fixture
def region() -> Iterator[engine.Region]:
    """Return a region in plain memory; threads that work for it are bound to no entry."""
    memory = bytearray(SLOTS_OFFSET + SLOTS * SLOT_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    made = engine.Region(
        memory, address, THREADS, SLOTS, SLOTS_OFFSET, SLOT_BYTES, lambda: made.bind(-1)
    )
    yield made
    made.unbind()


@pytest.fixture
def record(region: engine.Region) -> Any:
    return region.open()


@pytest.fixture
def handover() -> Iterator[Handover]:
    handover = Handover(lambda loop: None)
    handover.install()
    yield handover
    handover.remove()


def owner(into: list[Any]) -> None:
    into.append(engine.current())


def as_request(record: Any, work: Callable[[], Any]) -> Any:
    """Do work with the record current in the context, as an integration has it."""

    def run() -> Any:
        current.set(record)
        return work()

    return contextvars.copy_context().run(run)


def by_thread(seen: list[Any]) -> None:
    thread = threading.Thread(target=owner, args=(seen,))
    thread.start()
    thread.join()


def by_subclass(seen: list[Any]) -> None:
    class Worker(threading.Thread):
        def run(self) -> None:
            owner(seen)

    thread = Worker()
    thread.start()
    thread.join()


def by_timer(seen: list[Any]) -> None:
    timer = threading.Timer(0, owner, (seen,))
    timer.start()
    timer.join()


def by_executor(seen: list[Any]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(owner, seen).result()


def by_executors_map(seen: list[Any]) -> None:
    with ThreadPoolExecutor(1) as pool:
        list(pool.map(owner, [seen]))


def by_to_thread(seen: list[Any]) -> None:
    asyncio.run(asyncio.to_thread(owner, seen))


def by_run_in_executor(seen: list[Any]) -> None:
    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(None, owner, seen)

    asyncio.run(main())


def by_anyio_on_asyncio(seen: list[Any]) -> None:
    async def main() -> None:
        await anyio.to_thread.run_sync(owner, seen)

    anyio.run(main)


def by_trio(seen: list[Any]) -> None:
    async def main() -> None:
        await trio.to_thread.run_sync(owner, seen)

    trio.run(main)


def by_anyio_on_trio(seen: list[Any]) -> None:
    async def main() -> None:
        await anyio.to_thread.run_sync(owner, seen)

    anyio.run(main, backend="trio")


WAYS = [
    *(by_thread, by_subclass, by_timer, by_executor, by_executors_map, by_to_thread),
    *(by_run_in_executor, by_anyio_on_asyncio, by_trio, by_anyio_on_trio),
]


@pytest.fixture
def libraries() -> None:
    """Import what anyio imports only when it first runs, so that it is there to be wrapped."""
    importlib.import_module("anyio._backends._asyncio")
    importlib.import_module("anyio._backends._trio")


@pytest.mark.parametrize("way", WAYS)
def test_work_given_to_a_thread_runs_as_the_request(
    libraries: None, handover: Handover, record: Any, way: Callable[[list[Any]], None]
) -> None:
    seen: list[Any] = []

    as_request(record, lambda: way(seen))

    assert seen == [record]
    assert engine.current() is None


@pytest.mark.parametrize("way", WAYS)
def test_work_of_no_request_is_left_alone(
    libraries: None, handover: Handover, way: Callable[[list[Any]], None]
) -> None:
    seen: list[Any] = []

    way(seen)

    assert seen == [None]


@pytest.mark.parametrize("way", WAYS)
def test_work_of_a_request_that_has_ended_is_left_alone(
    libraries: None, handover: Handover, record: Any, way: Callable[[list[Any]], None]
) -> None:
    seen: list[Any] = []
    record.close()

    as_request(record, lambda: way(seen))

    assert seen == [None]


@pytest.mark.parametrize("way", WAYS)
def test_after_remove_nothing_is_wrapped(
    libraries: None, record: Any, way: Callable[[list[Any]], None]
) -> None:
    seen: list[Any] = []
    handover = Handover(lambda loop: None)
    handover.install()
    handover.remove()

    as_request(record, lambda: way(seen))

    assert seen == [None]


def test_what_a_pools_thread_is_made_for_does_not_stick_to_it(
    handover: Handover, record: Any
) -> None:
    seen: list[Any] = []

    with ThreadPoolExecutor(1) as pool:
        as_request(record, lambda: pool.submit(owner, seen).result())
        pool.submit(owner, seen).result()

    assert seen == [record, None]


def test_threads_of_multiprocessings_pool_belong_to_nobody(handover: Handover, record: Any) -> None:
    seen: list[Any] = []

    def work() -> None:
        with multiprocessing.pool.ThreadPool(1) as pool:
            pool.apply(owner, (seen,))

    as_request(record, work)

    assert seen == [None]


def test_a_thread_that_a_worker_starts_belongs_to_the_same_request(
    handover: Handover, record: Any
) -> None:
    seen: list[Any] = []

    with ThreadPoolExecutor(1) as pool:
        as_request(record, lambda: pool.submit(by_thread, seen).result())

    assert seen == [record]


def test_results_and_exceptions_pass_unchanged(handover: Handover, record: Any) -> None:
    def fail() -> None:
        raise LookupError("theirs")

    with ThreadPoolExecutor(1) as pool:
        answer = as_request(record, lambda: pool.submit(divmod, 17, 5).result())
        failed = as_request(record, lambda: pool.submit(fail).exception())

    assert answer == (3, 2)
    assert isinstance(failed, LookupError)
    assert engine.current() is None


def test_a_started_thread_keeps_no_run_of_ours(handover: Handover, record: Any) -> None:
    thread = threading.Thread(target=int)

    as_request(record, thread.start)
    thread.join()

    assert "run" not in thread.__dict__


def test_a_thread_that_cannot_start_is_as_it_was(handover: Handover, record: Any) -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()

    with pytest.raises(RuntimeError, match="once"):
        as_request(record, thread.start)
    assert "run" not in thread.__dict__


def test_installing_twice_wraps_once_and_removing_restores() -> None:
    submit, start = ThreadPoolExecutor.__dict__["submit"], threading.Thread.__dict__["start"]
    handover = Handover(lambda loop: None)

    handover.install()
    handover.install()
    wrapped = ThreadPoolExecutor.__dict__["submit"]
    assert getattr(wrapped, MARK) is submit
    handover.remove()
    handover.remove()

    assert ThreadPoolExecutor.__dict__["submit"] is submit
    assert threading.Thread.__dict__["start"] is start


def test_a_later_patch_of_somebody_else_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    original = threading.Thread.__dict__["start"]
    handover = Handover(lambda loop: None)
    handover.install()
    ours = threading.Thread.__dict__["start"]

    def theirs(self: threading.Thread) -> None:
        ours(self)

    monkeypatch.setattr(threading.Thread, "start", theirs)
    handover.remove()

    assert threading.Thread.__dict__["start"] is theirs
    monkeypatch.undo()
    threading.Thread.start = original  # type: ignore[method-assign]


def test_a_coroutine_run_from_a_thread_by_asgiref_runs_as_the_request(
    handover: Handover, record: Any
) -> None:
    sync = pytest.importorskip("asgiref.sync")
    handover.install()  # asgiref may be imported only now
    seen: list[Any] = []

    async def coroutine() -> None:
        owner(seen)
        await asyncio.sleep(0)
        owner(seen)

    async def main() -> None:
        current.set(record)
        await sync.sync_to_async(sync.async_to_sync(coroutine))()

    asyncio.run(main())

    assert seen == [record, record]
