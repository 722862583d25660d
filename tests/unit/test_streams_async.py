"""Streams on event loops: asyncio, uvloop, trio, and anyio on asyncio and on trio."""

from __future__ import annotations

import asyncio
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
import trio

from kerneltrace_core.btf.layout import FieldLayout, Scalar, StructLayout
from kerneltrace_core.errors import ClosedError, UnsupportedError
from kerneltrace_core.events.classes import event_class
from kerneltrace_core.events.engine import Selector
from kerneltrace_core.session.consumer import Consumer
from kerneltrace_core.session.hub import Hub
from kerneltrace_core.session.streams import BatchStream, EventStream, RawStream, aprocess, process
from kerneltrace_core.testing.ring import FakeRing

pytestmark = pytest.mark.unit

U16, U32, U64 = (Scalar(size, False, "int", name=f"__u{8 * size}") for size in (2, 4, 8))
SAMPLE = StructLayout(
    "sample",
    16,
    (
        FieldLayout("type", 0, U16),
        FieldLayout("size", 2, U16),
        FieldLayout("cpu", 4, U32),
        FieldLayout("number", 8, U64),
    ),
)
SELECTOR = Selector(16, True, 0, 2, (1,))

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


def record(number: int) -> bytes:
    return struct.pack("=HHIQ", 1, 16, 0, number)


def run_uvloop(main: Callable[[], Awaitable[Any]]) -> Any:
    uvloop = pytest.importorskip("uvloop")
    return uvloop.run(main())


RUNNERS: dict[str, Run] = {
    "asyncio": lambda main: asyncio.run(main()),  # type: ignore[arg-type]
    "uvloop": run_uvloop,
    "trio": trio.run,
    "anyio-asyncio": lambda main: anyio.run(main, backend="asyncio"),
    "anyio-trio": lambda main: anyio.run(main, backend="trio"),
}


@pytest.fixture(params=sorted(RUNNERS))
def run(request: pytest.FixtureRequest) -> Run:
    return RUNNERS[request.param]


@pytest.fixture(params=[pytest.param(True, id="epoll"), pytest.param(False, id="listen")])
def ring(request: pytest.FixtureRequest) -> Iterator[FakeRing]:
    if request.param and not sys.platform.startswith("linux"):
        pytest.skip("there is no epoll here")
    ring = FakeRing(pollable=request.param)
    yield ring
    ring.close()


@pytest.fixture(params=["inline", "thread"])
def hub(request: pytest.FixtureRequest, ring: FakeRing) -> Iterator[Hub]:
    hub = Hub(ring, session="test", pump=request.param)
    yield hub
    hub.close()


@pytest.fixture
def consumer(hub: Hub) -> Consumer:
    return hub.subscribe(SELECTOR)


def events(consumer: Consumer, timeout: float | None = None) -> EventStream[Any]:
    return EventStream(consumer, event_class(SAMPLE), SELECTOR, timeout)


def send(ring: FakeRing, hub: Hub, *records: bytes) -> None:
    """Submit records and wait until a pump's thread, if there is one, has queued them all.

    Else a reader's timeout would race with that thread.
    """
    ring.submit(*records)
    while hub._pump is not None and ring.pending_bytes():
        time.sleep(0.001)
    hub.stats()  # not before the hub has shared out what it drained


def later(seconds: float, function: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, function)
    timer.start()
    return timer


def test_events_come_in_order_as_they_are_sent(
    run: Run, consumer: Consumer, ring: FakeRing
) -> None:
    def send() -> None:
        for number in range(50):
            ring.submit(record(number), record(1000 + number))
            time.sleep(0.0005)

    async def main() -> list[int]:
        sender = threading.Thread(target=send)
        sender.start()
        numbers = []
        async for event in events(consumer):
            numbers.append(event.number)
            if len(numbers) == 100:
                break
        sender.join()
        return numbers

    assert run(main) == [number for pair in range(50) for number in (pair, 1000 + pair)]


def test_the_timeout_ends_the_iteration_and_the_next_goes_on(
    run: Run, consumer: Consumer, ring: FakeRing
) -> None:
    async def main() -> tuple[list[int], float, list[int]]:
        stream = events(consumer, 0.05)
        send(ring, consumer.hub, record(1))
        begin = time.monotonic()
        first = [event.number async for event in stream]
        waited = time.monotonic() - begin
        send(ring, consumer.hub, record(2))
        return first, waited, [event.number async for event in stream]

    first, waited, second = run(main)

    assert (first, second) == ([1], [2])
    assert waited >= 0.05


def test_closing_ends_an_iteration_that_waits(run: Run, consumer: Consumer) -> None:
    async def main() -> list[int]:
        stream = events(consumer)
        timer = later(0.02, stream.close)
        numbers = [event.number async for event in stream]
        timer.join()
        with pytest.raises(ClosedError, match="the stream is closed"):
            stream.__aiter__()
        return numbers

    assert run(main) == []


def test_closing_the_ring_ends_an_iteration_that_waits(
    run: Run, hub: Hub, consumer: Consumer, ring: FakeRing
) -> None:
    async def main() -> list[int]:
        timer = later(0.02, hub.close)
        numbers = [event.number async for event in events(consumer)]
        timer.join()
        return numbers

    assert run(main) == []


def test_other_tasks_run_while_one_waits_and_under_a_flood(
    run: Run, consumer: Consumer, ring: FakeRing
) -> None:
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            ring.submit(*[record(0)] * 100)

    async def main() -> int:
        ticks = 0

        async def read() -> None:
            async for _ in events(consumer):
                pass

        async def tick() -> None:
            nonlocal ticks
            for _ in range(20):
                await anyio.sleep(0.001)
                ticks += 1
            consumer.close()

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await anyio.sleep(0.01)
            flooding = threading.Thread(target=flood)
            flooding.start()
            try:
                await tick()
            finally:
                stop.set()
                flooding.join()
        return ticks

    assert run(main) == 20


def test_a_cancelled_wait_loses_nothing(run: Run, consumer: Consumer, ring: FakeRing) -> None:
    async def main() -> list[int]:
        stream = events(consumer)
        numbers: list[int] = []
        sent = 0
        while len(numbers) < 200:
            if sent < 200:
                ring.submit(record(sent))
                sent += 1
            with anyio.move_on_after(0.0001 * (sent % 3)):
                async for event in stream:
                    numbers.append(event.number)
        return numbers

    assert run(main) == list(range(200))


def test_several_streams_each_get_every_event(run: Run, hub: Hub, ring: FakeRing) -> None:
    async def main() -> list[list[int]]:
        found: list[list[int]] = [[], [], []]

        async def read(stream: EventStream[Any], into: list[int]) -> None:
            async for event in stream:
                into.append(event.number)
                if len(into) == 100:
                    break

        async with anyio.create_task_group() as group:
            for into in found:
                group.start_soon(read, events(hub.subscribe(SELECTOR)), into)
            for number in range(100):
                await anyio.sleep(0)
                ring.submit(record(number))
        return found

    assert run(main) == [list(range(100))] * 3


def test_raw_records_and_batches_come_too(run: Run, hub: Hub, ring: FakeRing) -> None:
    async def main() -> tuple[list[bytes], list[int]]:
        raw = RawStream(hub.subscribe(None), 0.05)
        batches: BatchStream[Any] = BatchStream(hub.subscribe(SELECTOR), SAMPLE, 0.05, 2)
        send(ring, hub, record(1), record(2), b"other", record(3))
        records = [each async for each in raw]
        numbers = []
        async for batch in batches:
            assert 0 < len(batch) <= 2
            numbers += list(batch["number"])
        return records, numbers

    assert run(main) == ([record(1), record(2), b"other", record(3)], [1, 2, 3])


def test_callbacks_may_be_coroutines_and_say_when_to_stop(
    run: Run, consumer: Consumer, ring: FakeRing
) -> None:
    async def main() -> tuple[int, list[int], int]:
        stream = events(consumer, 0.05)
        send(ring, consumer.hub, *(record(number) for number in range(10)))
        numbers: list[int] = []

        async def slowly(event: Any) -> bool:
            await anyio.sleep(0)
            numbers.append(event.number)
            return len(numbers) < 4

        calls = await aprocess(stream, slowly)
        rest = await aprocess(stream, lambda event: numbers.append(event.number))
        return calls, numbers, rest

    assert run(main) == (4, list(range(10)), 6)


def test_the_event_loop_watches_nothing_while_nobody_waits(
    consumer: Consumer, ring: FakeRing
) -> None:
    class Watched(asyncio.SelectorEventLoop):
        watching = 0
        most = 0

        def _add_reader(self, fd: Any, callback: Any, *args: Any) -> Any:
            self.watching += 1
            self.most = max(self.most, self.watching)
            return super()._add_reader(fd, callback, *args)  # type: ignore[misc]

        def _remove_reader(self, fd: Any) -> Any:
            self.watching -= 1
            return super()._remove_reader(fd)  # type: ignore[misc]

    async def main() -> None:
        before = loop.watching
        send(ring, consumer.hub, record(1))
        stream = events(consumer, 0.01)
        assert [event.number async for event in stream] == [1]
        assert loop.watching == before

    loop = Watched()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_under_another_library_it_says_so(consumer: Consumer) -> None:
    waiting = consumer.next_batch_async()

    with pytest.raises(UnsupportedError, match=r"wait for events: neither asyncio nor trio"):
        waiting.send(None)


def test_sync_callbacks_are_called_until_they_return_false(
    consumer: Consumer, ring: FakeRing
) -> None:
    send(ring, consumer.hub, *(record(number) for number in range(5)))
    numbers: list[int] = []

    def callback(event: Any) -> bool:
        numbers.append(event.number)
        return event.number != 2

    assert process(events(consumer, 0.05), callback) == 3
    assert numbers == [0, 1, 2]


def test_a_closed_stream_counts_what_it_had_in_hand(ring: FakeRing) -> None:
    hub = Hub(ring)
    stream = events(hub.subscribe(SELECTOR))
    ring.submit(*(record(number) for number in range(10)))
    first = next(iter(stream))
    held = stream.counts()

    stream.close()
    counts = hub.stats()
    hub.close()

    assert first.number == 0
    assert (held.delivered, held.waiting) == (1, 9)
    assert (counts.records, counts.delivered, counts.abandoned) == (10, 1, 9)


def test_a_broken_off_iteration_goes_on_and_a_forgotten_one_leaves(ring: FakeRing) -> None:
    hub = Hub(ring)
    stream = events(hub.subscribe(SELECTOR), 0)
    ring.submit(*(record(number) for number in range(5)))
    for event in stream:
        if event.number == 1:
            break
    rest = [event.number for event in stream]
    del stream, event
    for _ in events(hub.subscribe(SELECTOR), 0):
        pass

    assert rest == [2, 3, 4]
    assert hub.stats().consumers == 0
    hub.close()
