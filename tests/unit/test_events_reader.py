"""The iterator over events: in `for`, in `async for`, in many hands, and in wrong ones."""

from __future__ import annotations

import asyncio
import gc
import pickle
import struct
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneltrace_core.errors import OptionError
from unit.events_engines import frame, frames_of, load_engine, make_event

SIZE = 16


@pytest.fixture(params=["c", "python"])
def engine(request: pytest.FixtureRequest) -> Any:
    return load_engine(request.param)


def numbered(*numbers: int) -> bytes:
    """Return frames of records that begin with these numbers."""
    return frames_of(*(struct.pack("=QQ", number, 0) for number in numbers))


def event_class(engine: Any, size: int = SIZE, exact: bool = True) -> Any:
    return make_event(engine, size, exact, number=engine.Field(0, 8, "u"))


class Source:
    """Batches to hand out, one for each call, and how often it was asked."""

    def __init__(self, *batches: Any) -> None:
        self.batches = list(batches)
        self.asked = 0

    def refill(self) -> Any:
        self.asked += 1
        batch = self.batches.pop(0) if self.batches else None
        if isinstance(batch, BaseException):
            raise batch
        return batch

    async def arefill(self) -> Any:
        await asyncio.sleep(0)
        return self.refill()

    def reader(self, engine: Any, cls: Any = None, selector: Any = None) -> Any:
        return engine.Reader(
            cls or event_class(engine),
            selector or engine.Selector(SIZE, True),
            self.refill,
            self.arefill,
        )


async def collect(reader: Any) -> list[Any]:
    return [event async for event in reader]


def numbers_of(reader: Any, way: str) -> list[int]:
    events = list(reader) if way == "for" else asyncio.run(collect(reader))
    return [event.number for event in events]


@pytest.fixture(params=["for", "async for"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_events_come_in_order_from_one_batch_after_the_other(engine: Any, way: str) -> None:
    source = Source((numbered(1, 2, 3), 0, 3), (b"", 0, 0), (numbered(4), 0, 1), (b"", 0, 7), None)
    reader = source.reader(engine)

    assert numbers_of(reader, way) == [1, 2, 3, 4]
    assert (reader.delivered, reader.unread, source.asked) == (4, 0, 5)


def test_each_batch_says_what_to_skip_and_how_many_to_take(engine: Any, way: str) -> None:
    mixed = numbered(1) + frame(b"other") + numbered(2, 3) + frame(b"") + numbered(4, 5)
    source = Source((mixed, 0, 2), (mixed, 1, 2), (mixed, 4, 9), (mixed, 9, 1), (mixed, 0, 0))

    assert numbers_of(source.reader(engine), way) == [1, 2, 2, 3, 5]


def test_other_types_on_the_ring_are_left_out(engine: Any, way: str) -> None:
    frames = numbered(1, 2, 1, 3)
    source = Source((frames, 0, 4))
    selector = engine.Selector(SIZE, True, 0, 2, (1, 3))

    assert numbers_of(source.reader(engine, selector=selector), way) == [1, 1, 3]


def test_an_ended_iteration_can_begin_again(engine: Any, way: str) -> None:
    source = Source(None, (numbered(1), 0, 1), None, (numbered(2), 0, 1))
    reader = source.reader(engine)

    assert [numbers_of(reader, way) for _ in range(4)] == [[], [1], [2], []]


def test_an_event_knows_its_origin_and_keeps_no_frames(engine: Any, way: str) -> None:
    frames = frame(bytes(SIZE), 3) + frame(bytes(SIZE), 4)
    references = sys.getrefcount(frames)
    source = Source((frames, 0, 2))

    reader = source.reader(engine)
    events = list(reader) if way == "for" else asyncio.run(collect(reader))

    assert [event.origin for event in events] == [3, 4]
    assert sys.getrefcount(frames) == references


def test_an_exact_class_keeps_its_own_bytes_and_a_flexible_one_all(engine: Any) -> None:
    frames = frames_of(bytes(SIZE) + b"rest")
    padded = engine.Selector(SIZE, True, padding=4)
    longer = engine.Selector(SIZE, False)

    exact = next(Source((frames, 0, 1)).reader(engine, selector=padded))
    flexible = next(Source((frames, 0, 1)).reader(engine, event_class(engine, exact=False), longer))

    assert bytes(exact) == bytes(SIZE)
    assert bytes(flexible) == bytes(SIZE) + b"rest"


def test_what_refill_raises_passes_and_nothing_is_lost(engine: Any, way: str) -> None:
    source = Source((numbered(1), 0, 1), LookupError("gone"), (numbered(2), 0, 1))
    reader = source.reader(engine)

    def one() -> int:
        if way == "for":
            return int(next(reader).number)
        return int(asyncio.run(anext_of(reader)).number)

    assert one() == 1
    with pytest.raises(LookupError, match="gone"):
        one()
    assert one() == 2


async def anext_of(reader: Any) -> Any:
    return await reader.__anext__()


@pytest.mark.parametrize(
    "batch",
    [
        7,
        b"",
        [b"", 0, 0],
        (),
        (b"", 0),
        (b"", 0, 0, 0),
        ("", 0, 0),
        (bytearray(), 0, 0),
        (b"", "0", 0),
        (b"", 0, None),
        (b"", 0, 1.0),
    ],
)
def test_a_refill_that_returns_something_else_is_refused(engine: Any, way: str, batch: Any) -> None:
    reader = Source(batch).reader(engine)

    with pytest.raises(TypeError, match="read events: refill returned"):
        numbers_of(reader, way)
    assert reader.unread == 0


@pytest.mark.parametrize("counts", [(-1, 0), (0, -1)])
def test_negative_counts_are_refused(engine: Any, way: str, counts: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match="read events: cannot skip"):
        numbers_of(Source((b"", *counts)).reader(engine), way)


def test_of_malformed_frames_the_rest_is_dropped(engine: Any, way: str) -> None:
    source = Source((numbered(1) + b"rubbish", 0, 2), (numbered(2), 0, 1))
    reader = source.reader(engine)

    with pytest.raises(OptionError, match="the record at byte 24 is of"):
        numbers_of(reader, way)
    assert reader.unread == 0
    assert numbers_of(reader, way) == [2]


def test_a_reader_needs_an_event_class_a_selector_and_bytes_enough(engine: Any) -> None:
    cls, selector = event_class(engine), engine.Selector(SIZE, True)
    unbound = type("Unbound", (engine.KernelEvent,), {"__slots__": ()})

    def make(cls: Any, selector: Any) -> Any:
        return engine.Reader(cls, selector, None, None)

    for wrong in (int, 5, None, cls.from_bytes(bytes(SIZE))):
        with pytest.raises(TypeError, match="is not an event class"):
            make(wrong, selector)
    for wrong in (None, (SIZE, True), selector.count):
        with pytest.raises(TypeError, match="is not a Selector"):
            make(cls, wrong)
    with pytest.raises(TypeError, match="its layout is not known"):
        make(unbound, selector)
    with pytest.raises(OptionError, match="records of 15 bytes are too short"):
        make(cls, engine.Selector(SIZE - 1, True))
    with pytest.raises(TypeError):
        next(make(cls, selector))
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle.dumps(make(cls, selector))
    with pytest.raises(TypeError):
        type("Sub", (engine.Reader,), {})(cls, selector, None, None, 1)


def test_discarding_drops_what_is_in_hand_and_tells_how_many(engine: Any) -> None:
    source = Source((numbered(1, 2, 3), 0, 3), (numbered(4), 0, 1))
    reader = source.reader(engine)
    next(reader)

    assert (reader.unread, reader.discard(), reader.unread, reader.discard()) == (2, 2, 0, 0)
    assert next(reader).number == 4


def test_a_batch_that_comes_while_another_is_in_hand_waits(engine: Any) -> None:
    """As when two threads, or two tasks, were in refill at the same time."""
    batches = iter([(numbered(1), 0, 1), (numbered(2, 3), 0, 2), (numbered(4), 0, 1), None])
    seen: list[int] = []

    def refill() -> Any:
        batch = next(batches)
        if not seen:
            seen.append(0)
            seen.append(next(reader).number)  # asks for the batch after this one
        return batch

    async def never() -> Any:
        raise AssertionError

    reader = engine.Reader(event_class(engine), engine.Selector(SIZE, True), refill, never)
    first = next(reader).number
    unread = reader.unread

    # The inner one had 2 of (2, 3); 3 is still in hand, so 1 waits behind it.
    assert (seen[1], first, unread) == (2, 3, 1)
    assert [event.number for event in reader] == [1, 4]


def test_an_end_is_none_while_events_are_in_hand(engine: Any, way: str) -> None:
    inner: list[int] = []
    batches: list[Any] = [(numbered(1, 2), 0, 2), None]

    def refill() -> Any:
        if not inner:
            inner.append(0)
            inner.append(next(reader).number)
        return batches.pop(0)

    async def arefill() -> Any:
        return refill()

    reader = engine.Reader(event_class(engine), engine.Selector(SIZE, True), refill, arefill)
    first = next(reader) if way == "for" else asyncio.run(anext_of(reader))

    assert (inner[1], first.number, reader.unread) == (1, 2, 0)


def test_threads_that_share_a_reader_share_the_events(engine: Any) -> None:
    total, threads = 3000, 4
    batches = [(numbered(*range(at, at + 30)), 0, 30) for at in range(0, total, 30)]
    lock = threading.Lock()
    taken: list[list[int]] = [[] for _ in range(threads)]

    def refill() -> Any:
        with lock:
            return batches.pop(0) if batches else None

    reader = engine.Reader(event_class(engine), engine.Selector(SIZE, True), refill, None)

    def work(mine: list[int]) -> None:
        mine.extend(event.number for event in reader)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        workers = [threading.Thread(target=work, args=(mine,)) for mine in taken]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)

    assert sorted(number for mine in taken for number in mine) == list(range(total))
    assert reader.delivered == total


def test_tasks_that_share_a_reader_share_the_events(engine: Any) -> None:
    async def main() -> list[int]:
        source = Source(*[(numbered(*range(at, at + 3)), 0, 3) for at in range(0, 90, 3)])
        reader = source.reader(engine)
        parts = await asyncio.gather(*[collect(reader) for _ in range(5)])
        return [event.number for part in parts for event in part]

    assert sorted(asyncio.run(main())) == list(range(90))


def test_what_is_awaited_takes_its_event_when_it_is_awaited(engine: Any) -> None:
    async def main() -> tuple[int, int, int]:
        reader = Source((numbered(1, 2, 3), 0, 3)).reader(engine)
        one, two = reader.__anext__(), reader.__anext__()
        dropped = reader.__anext__()
        if hasattr(dropped, "cr_frame"):
            dropped.close()  # a coroutine that nobody awaited warns
        del dropped
        second = (await two).number
        return second, (await one).number, (await reader.__anext__()).number

    assert asyncio.run(main()) == (1, 2, 3)


def test_nothing_is_awaited_twice(engine: Any) -> None:
    async def main() -> None:
        reader = Source((numbered(1, 2, 3), 0, 3)).reader(engine)
        one = reader.__anext__()
        await one
        with pytest.raises(RuntimeError, match="cannot reuse"):
            await one
        assert (await reader.__anext__()).number == 2

    asyncio.run(main())


def test_a_cancelled_task_loses_no_event(engine: Any) -> None:
    async def main() -> list[int]:
        gate = asyncio.Event()
        batches = [(numbered(1, 2), 0, 2), None]

        async def arefill() -> Any:
            await gate.wait()
            return batches.pop(0)

        reader = engine.Reader(event_class(engine), engine.Selector(SIZE, True), None, arefill)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.__anext__(), 0.01)
        task = asyncio.ensure_future(collect(reader))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        return [event.number for event in await collect(reader)]

    assert asyncio.run(main()) == [1, 2]


def test_a_single_event_can_be_a_task(engine: Any) -> None:
    async def main() -> list[int]:
        reader = Source((numbered(1), 0, 1), (numbered(2, 3), 0, 2)).reader(engine)
        tasks = [asyncio.create_task(reader.__anext__()) for _ in range(3)]
        assert "Task pending" in repr(tasks[0])
        return sorted([(await task).number for task in tasks])

    assert asyncio.run(main(), debug=True) == [1, 2, 3]


def test_uvloop_drives_it_too(engine: Any) -> None:
    uvloop = pytest.importorskip("uvloop")
    source = Source((numbered(1, 2), 0, 2), (numbered(3), 0, 1))
    loop = uvloop.new_event_loop()
    try:
        events = loop.run_until_complete(collect(source.reader(engine)))
    finally:
        loop.close()

    assert [event.number for event in events] == [1, 2, 3]


def test_trio_drives_it_too(engine: Any) -> None:
    trio = pytest.importorskip("trio")
    batches = [(numbered(1, 2), 0, 2), (numbered(3), 0, 1), None]

    async def arefill() -> Any:
        await trio.sleep(0)
        return batches.pop(0)

    async def main() -> list[Any]:
        reader = engine.Reader(event_class(engine), engine.Selector(SIZE, True), None, arefill)
        with trio.move_on_after(0):
            await collect(reader)
            raise AssertionError
        return await collect(reader)

    assert [event.number for event in trio.run(main)] == [1, 2, 3]


class ByHand:
    """An awaitable in Python: yields what it was given, and returns a batch."""

    def __init__(self, batch: Any, *yields: Any) -> None:
        self.batch, self.yields = batch, yields
        self.log: list[Any] = []

    def __await__(self) -> Any:
        for value in self.yields:
            try:
                self.log.append((yield value))
            except KeyError as error:
                self.log.append(type(error))
        return self.batch


def drive(engine: Any, awaitable: Any) -> Any:
    reader = engine.Reader(
        event_class(engine), engine.Selector(SIZE, True), None, lambda: awaitable
    )
    return reader.__anext__().__await__()


def test_what_arefill_awaits_is_driven_as_await_would(engine: Any) -> None:
    awaitable = ByHand((numbered(9), 0, 1), "one", "two", "three")
    driver = drive(engine, awaitable)

    assert driver.send(None) == "one"
    assert driver.send("sent") == "two"
    assert driver.throw(KeyError("thrown")) == "three"
    with pytest.raises(StopIteration) as stop:
        next(driver)
    assert stop.value.value.number == 9
    assert awaitable.log == ["sent", KeyError, None]


def test_what_is_thrown_may_end_arefill_with_a_batch(engine: Any) -> None:
    driver = drive(engine, ByHand((numbered(9), 0, 1), "one"))
    next(driver)

    with pytest.raises(StopIteration) as stop:
        driver.throw(KeyError)
    assert stop.value.value.number == 9


def test_what_is_thrown_and_not_caught_passes(engine: Any) -> None:
    for thrown in ((ZeroDivisionError,), (ZeroDivisionError("x"),)):
        driver = drive(engine, ByHand(None, "one"))
        next(driver)
        with pytest.raises(ZeroDivisionError):
            driver.throw(*thrown)
        with pytest.raises((RuntimeError, StopIteration)):
            driver.send(None)
    fresh = drive(engine, ByHand(None, "one"))
    with pytest.raises(ZeroDivisionError, match="x"):
        fresh.throw(ZeroDivisionError("x"))


def test_closing_closes_what_is_awaited(engine: Any) -> None:
    closed = []

    async def arefill() -> Any:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            closed.append(True)

    async def main() -> None:
        reader = engine.Reader(event_class(engine), engine.Selector(SIZE, True), None, arefill)
        driver = reader.__anext__().__await__()
        next(driver)
        driver.close()
        driver.close()

    asyncio.run(main())
    assert closed == [True]


def test_dropping_what_is_awaited_closes_it_at_once(engine: Any) -> None:
    closed = []

    async def arefill() -> Any:
        try:
            await ByHand(None, "one")
        finally:
            closed.append(True)

    reader = engine.Reader(event_class(engine), engine.Selector(SIZE, True), None, arefill)
    driver = reader.__anext__().__await__()
    next(driver)
    gc.disable()
    try:
        del driver
        assert closed == [True]
    finally:
        gc.enable()


@pytest.mark.parametrize("wrong", [7, None, "batch"])
def test_an_arefill_that_is_not_awaitable_is_refused(engine: Any, wrong: Any) -> None:
    with pytest.raises(TypeError):
        next(drive(engine, wrong))


def test_an_awaitable_that_awaits_itself_is_refused(engine: Any) -> None:
    async def arefill() -> Any:
        return driver.send(None)

    reader = engine.Reader(event_class(engine), engine.Selector(SIZE, True), None, arefill)
    driver = reader.__anext__().__await__()

    with pytest.raises((RuntimeError, ValueError)):
        driver.send(None)


def test_a_reader_in_a_circle_is_collected(engine: Any) -> None:
    class Stream:
        def __init__(self) -> None:
            self.reader = engine.Reader(
                event_class(engine), engine.Selector(SIZE, True), self.refill, self.arefill
            )
            self.batches = [(numbered(1, 2), 0, 2)]

        def refill(self) -> Any:
            return self.batches.pop()

        async def arefill(self) -> Any:
            return self.batches.pop()

    def use() -> Any:
        stream = Stream()
        next(stream.reader)
        asyncio.run(anext_of(stream.reader))
        return weakref.ref(stream)

    gone = use()
    gc.collect()
    assert gone() is None


def test_iterating_leaves_no_memory_behind(engine: Any) -> None:
    cls, selector = event_class(engine), engine.Selector(SIZE, True)
    frames = numbered(*range(10)) + frame(b"other")

    def work() -> None:
        for _ in range(20):
            for ending in (None, LookupError(), (b"x", 0, 1), 7):
                source = Source((frames, 2, 5), (frames, 0, 3), ending)
                for way in ("for", "async for"):
                    reader = source.reader(engine, cls, selector)
                    try:
                        if way == "for":
                            list(reader)
                        else:
                            run(collect(reader))
                    except (LookupError, OptionError, TypeError):
                        pass
                    reader.discard()

    def run(coroutine: Any) -> None:
        try:
            while True:
                coroutine.send(None)
        except StopIteration:
            pass

    work()
    gc.collect()
    counts = [sys.getrefcount(each) for each in (cls, selector, frames)]
    tracemalloc.start()
    work()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(10):
        work()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert [sys.getrefcount(each) for each in (cls, selector, frames)] == counts
    assert after - before < 10_000  # of 1600 iterations


batches = st.lists(
    st.tuples(
        st.lists(st.sampled_from([8, 15, SIZE, SIZE, SIZE, 17]), max_size=8),
        st.integers(0, 4),
        st.integers(0, 9),
        st.sampled_from([0, 0, 0, 5]),
    ),
    max_size=5,
)
rules = st.tuples(st.booleans(), st.sampled_from([(), (0,), (0, 1, 2, 3, 4)]))


@given(batches, rules, st.booleans())
def test_the_extension_delivers_what_its_twin_delivers(
    batches: list[Any], rule: Any, whole: bool
) -> None:
    made = []
    serial = 0
    for sizes, skip, take, cut in batches:
        payloads = []
        for size in sizes:
            payloads.append(struct.pack("=BB", serial % 7, serial % 256).ljust(size, b"."))
            serial += 1
        joined = b"".join(frame(payload, index) for index, payload in enumerate(payloads))
        made.append((joined[: len(joined) - cut], skip, take))
    exact, tags = rule

    def outcome(name: str, run: Callable[[Any, list[Any]], None]) -> Any:
        engine = load_engine(name)
        selector = engine.Selector(SIZE, exact, 0 if tags else -1, 1 if tags else 0, tags)
        reader = Source(*made).reader(engine, event_class(engine, SIZE, not whole), selector)
        seen: list[Any] = []
        for _ in range(3):  # an error or an end is not the last word
            try:
                run(reader, seen)
            except OptionError as error:
                seen.append(str(error))
        return [*seen, reader.delivered, reader.unread]

    def in_for(reader: Any, seen: list[Any]) -> None:
        for event in reader:
            seen.append((bytes(event), event.origin))

    def in_async_for(reader: Any, seen: list[Any]) -> None:
        async def main() -> None:
            async for event in reader:
                seen.append((bytes(event), event.origin))

        drive_to_end(main())

    outcomes = [outcome(name, run) for name in ("c", "python") for run in (in_for, in_async_for)]
    assert all(each == outcomes[0] for each in outcomes)


def drive_to_end(coroutine: Awaitable[None]) -> None:
    driver = coroutine.__await__()
    try:
        while True:
            next(driver)
    except StopIteration:
        pass
