"""Who shares a stream gets each event once, however long the batches are that were drained."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kerneltrace_core.btf.layout import FieldLayout, Scalar, StructLayout
from kerneltrace_core.events.engine import Selector
from kerneltrace_core.session.consumer import Consumer
from kerneltrace_core.session.hub import Hub
from kerneltrace_core.session.overflow import Batch
from kerneltrace_core.session.streams import BatchStream, RawStream
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
DRAINED = 10  # records, at once


def send(ring: FakeRing, numbers: range) -> None:
    assert ring.submit(*(struct.pack("=HHIQ", 1, 16, 0, number) for number in numbers))


@pytest.fixture
def ring() -> Iterator[FakeRing]:
    ring = FakeRing()
    yield ring
    ring.close()


@pytest.fixture
def consumer(ring: FakeRing) -> Iterator[Consumer]:
    hub = Hub(ring, session="test")
    yield hub.subscribe(SELECTOR, capacity=DRAINED)
    hub.close()


def batches(consumer: Consumer, size: int, timeout: float | None = 0) -> BatchStream[Any]:
    return BatchStream(consumer, SAMPLE, timeout, size)


def read(stream: BatchStream[Any], into: list[list[int]]) -> None:
    for batch in stream:
        into.append(list(batch["number"]))


def on_threads(stream: BatchStream[Any], count: int) -> list[list[int]]:
    """Read a stream to its end on so many threads; return the batches of all of them."""
    found: list[list[int]] = []
    threads = [threading.Thread(target=read, args=(stream, found)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return found


def assert_each_once(found: list[list[int]], size: int, total: int) -> None:
    assert all(0 < len(batch) <= size for batch in found)
    assert sorted(number for batch in found for number in batch) == list(range(total))


@pytest.mark.parametrize("size", [1, 3, DRAINED - 1, DRAINED, 100])
def test_threads_that_have_drained_at_once_get_each_event_once(
    ring: FakeRing, consumer: Consumer, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    stream = batches(consumer, size)
    both = threading.Barrier(2)
    taken, made = consumer.next_batch, stream._columns
    met: set[int] = set()

    def next_batch(timeout: float | None) -> Batch | None:
        batch = taken(timeout)
        if batch is not None:
            both.wait(10)
        return batch

    def columns(*how: Any) -> Any:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            both.wait(10)  # both have put aside what is more than `size`
        return made(*how)

    monkeypatch.setattr(consumer, "next_batch", next_batch)
    monkeypatch.setattr(stream, "_columns", columns)
    send(ring, range(2 * DRAINED))

    found = on_threads(stream, 2)

    assert_each_once(found, size, 2 * DRAINED)
    counts = stream.counts()
    assert (counts.records, counts.delivered, counts.waiting) == (2 * DRAINED, 2 * DRAINED, 0)


def test_many_threads_get_each_of_many_events_once(ring: FakeRing, consumer: Consumer) -> None:
    stream = batches(consumer, 3)
    send(ring, range(5000))

    found = on_threads(stream, 4)

    assert_each_once(found, 3, 5000)
    assert consumer.hub.stats().delivered == 5000


@pytest.mark.parametrize("size", [1, 3, DRAINED - 1, DRAINED, 100])
def test_tasks_of_an_event_loop_get_each_event_once(
    ring: FakeRing, consumer: Consumer, size: int
) -> None:
    async def read_async(stream: BatchStream[Any]) -> list[list[int]]:
        return [list(batch["number"]) async for batch in stream]

    async def main() -> list[list[list[int]]]:
        return await asyncio.gather(read_async(stream), read_async(stream))

    stream = batches(consumer, size)
    send(ring, range(10 * DRAINED))

    first, second = asyncio.run(main())

    assert_each_once(first + second, size, 10 * DRAINED)
    counts = consumer.hub.stats()
    assert (counts.records, counts.delivered, counts.waiting) == (10 * DRAINED, 10 * DRAINED, 0)


def test_what_long_batches_have_left_is_waiting_and_then_abandoned(
    ring: FakeRing, consumer: Consumer
) -> None:
    async def one() -> list[int]:
        return list((await stream.__anext__())["number"])

    async def main() -> list[list[int]]:
        return await asyncio.gather(one(), one())

    stream = batches(consumer, 4)
    send(ring, range(2 * DRAINED))

    assert sorted(asyncio.run(main())) == [[0, 1, 2, 3], [10, 11, 12, 13]]

    held = stream.counts()
    assert (held.records, held.delivered, held.waiting) == (20, 8, 12)
    assert len(next(stream)) == 4
    stream.close()
    counts = consumer.hub.stats()
    assert (counts.records, counts.delivered, counts.waiting, counts.abandoned) == (20, 12, 0, 8)


def test_a_close_between_a_drain_and_its_batch_abandons_the_rest(
    ring: FakeRing, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = consumer.next_batch

    def next_batch(timeout: float | None) -> Batch | None:
        batch = taken(timeout)
        stream.close()  # as another thread may, just here
        return batch

    monkeypatch.setattr(consumer, "next_batch", next_batch)
    stream = batches(consumer, 4)
    send(ring, range(DRAINED))

    found: list[list[int]] = []
    read(stream, found)

    assert found == [[0, 1, 2, 3]]
    counts = consumer.hub.stats()
    assert (counts.records, counts.delivered, counts.waiting, counts.abandoned) == (10, 4, 0, 6)


def test_a_close_between_a_drain_and_its_records_abandons_all_of_them(
    ring: FakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(ring, session="test")
    consumer = hub.subscribe(None)
    taken = consumer.next_batch

    def next_batch(timeout: float | None) -> Batch | None:
        batch = taken(timeout)
        stream.close()
        return batch

    monkeypatch.setattr(consumer, "next_batch", next_batch)
    stream = RawStream(consumer, 0)
    send(ring, range(DRAINED))

    assert list(stream) == []
    counts = hub.stats()
    hub.close()
    assert (counts.records, counts.delivered, counts.waiting, counts.abandoned) == (10, 0, 0, 10)
