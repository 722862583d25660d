"""Streams over the kernel's rings: exact under a flood that must lose, asleep when idle."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from harness.nobody import as_nobody
from harness.ring_program import DISCARDED, MALFORMED, OTHER, SAMPLE, UNKNOWN, RingProgram
from harness.tiers import Require
from kerneltrace_core.errors import ClosedError
from kerneltrace_core.events.engine import Selector
from kerneltrace_core.ring.perf import PerfReader
from kerneltrace_core.ring.reader import RingReader
from kerneltrace_core.session.consumer import Consumer
from kerneltrace_core.session.hub import Hub
from kerneltrace_core.session.streams import BatchStream, EventStream

pytestmark = pytest.mark.kernel

RING_BYTES = 256 * 1024
FITS = RING_BYTES // 72
KNOWN = Selector(2, False, 0, 2, (1, 2))


@pytest.fixture
def program(require: Require) -> Iterator[RingProgram]:
    require("ring_buffer")
    program = RingProgram(RING_BYTES)
    yield program
    program.close()


@pytest.fixture(params=[pytest.param("inline", marks=pytest.mark.any_kernel), "thread"])
def hub(request: pytest.FixtureRequest, program: RingProgram) -> Iterator[Hub]:
    hub = Hub(
        RingReader(program.ring_fd, "events"), session="test", pump=request.param, known=KNOWN
    )
    yield hub
    hub.close()


@pytest.fixture
def inline(program: RingProgram) -> Iterator[Hub]:
    hub = Hub(RingReader(program.ring_fd, "events"), session="test", known=KNOWN)
    yield hub
    hub.close()


def events(
    program: RingProgram, hub: Hub, timeout: float | None = None, **how: Any
) -> EventStream[Any]:
    bound = program.bind()
    consumer = hub.subscribe(bound.selector, **how)
    return EventStream(consumer, bound.cls, bound.selector, timeout)


def run_uvloop(main: Callable[[], Awaitable[Any]]) -> Any:
    import uvloop

    return uvloop.run(main())


RUNNERS: dict[str, Callable[[Callable[[], Awaitable[Any]]], Any]] = {
    "asyncio": lambda main: asyncio.run(main()),  # type: ignore[arg-type]
    "uvloop": run_uvloop,
    "trio": trio.run,
    "anyio-asyncio": lambda main: anyio.run(main, backend="asyncio"),
    "anyio-trio": lambda main: anyio.run(main, backend="trio"),
}


def test_a_loop_gets_every_event_as_it_comes(program: RingProgram, hub: Hub) -> None:
    stream = events(program, hub)
    found = []
    with program.producer(50, pause=0.001):
        for event in stream:
            found.append((event.type, event.size, event.number, event.rest))
            if len(found) == 3200:
                break

    assert found == [(1, 64, number, (0, 1, 2, 3)) for number in range(3200)]


@pytest.mark.parametrize("library", sorted(RUNNERS))
@pytest.mark.any_kernel
def test_an_event_loop_gets_every_event_as_it_comes(
    program: RingProgram, hub: Hub, library: str
) -> None:
    async def main() -> list[int]:
        found = []
        with program.producer(50, pause=0.001):
            async for event in events(program, hub):
                found.append(event.number)
                if len(found) == 3200:
                    break
        return found

    assert RUNNERS[library](main) == list(range(3200))


@pytest.mark.parametrize(
    "overflow",
    [
        pytest.param("drop_oldest", marks=pytest.mark.any_kernel),
        pytest.param("drop_newest", marks=pytest.mark.any_kernel),
        "block",
    ],
)
def test_under_a_flood_every_record_is_delivered_or_counted_as_lost(
    program: RingProgram, hub: Hub, overflow: str
) -> None:
    kinds = (SAMPLE, SAMPLE, OTHER, UNKNOWN, SAMPLE, MALFORMED, SAMPLE, DISCARDED)
    stream = events(program, hub, overflow=overflow, capacity=500)
    delivered = 0
    iterator = iter(stream)
    with program.producer(1_000_000, *kinds):
        while program.lost[SAMPLE] + hub.stats().dropped < 5000 or delivered < 2000:
            next(iterator)
            delivered += 1
            if delivered % 100 == 0:
                time.sleep(0.001)
    hub.close()
    delivered += sum(1 for _ in iterator)

    sent, counts = program.sent, hub.stats()
    assert (program.lost[SAMPLE] if overflow == "block" else counts.dropped) > 0
    assert counts.records == sum(sent) - sent[DISCARDED]
    assert counts.discarded == sent[DISCARDED]
    assert counts.unknown == sent[UNKNOWN] > 0
    assert counts.malformed == sent[MALFORMED] > 0
    assert counts.unclaimed == sent[OTHER] > 0
    assert sent[SAMPLE] == delivered + counts.dropped
    assert (counts.delivered, counts.waiting, counts.abandoned) == (delivered, 0, 0)
    mine = stream.counts()
    assert mine.records == mine.delivered + mine.dropped + mine.other + mine.malformed


@pytest.mark.any_kernel
def test_what_overflows_is_dropped_and_counted(program: RingProgram, inline: Hub) -> None:
    slow = events(program, inline, 0, capacity=100)
    newest = events(program, inline, 0, capacity=100, overflow="drop_newest")
    keen = events(program, inline, 0)
    program.produce(1000)

    assert [event.number for event in keen] == list(range(1000))
    assert [event.number for event in slow] == list(range(900, 1000))
    assert [event.number for event in newest] == list(range(100))
    assert (inline.stats().dropped, inline.stats().delivered) == (1800, 1200)


@pytest.mark.any_kernel
def test_a_full_blocking_stream_leaves_the_loss_to_the_kernel(
    program: RingProgram, inline: Hub
) -> None:
    stream = events(program, inline, 0, capacity=100, overflow="block")
    program.produce(FITS + 50)

    found = [event.number for event in stream]

    assert found == list(range(FITS))
    assert (program.lost[SAMPLE], inline.stats().dropped) == (50, 0)


@pytest.mark.any_kernel
def test_batches_have_what_events_have(program: RingProgram, inline: Hub) -> None:
    bound = program.bind()
    stream: BatchStream[Any] = BatchStream(
        inline.subscribe(bound.selector), bound.layout, timeout=0, size=100
    )
    kinds = (SAMPLE, SAMPLE, SAMPLE, SAMPLE, SAMPLE, SAMPLE, OTHER, DISCARDED)
    program.produce(1600, *kinds)

    found = []
    for batch in stream:
        assert 0 < len(batch) <= 100
        found += batch["number"].tolist()

    wanted = [number for number in range(1600) if number % 8 < 6]
    counts = inline.stats()
    assert found == wanted
    assert (counts.delivered, counts.unclaimed, counts.discarded) == (1200, 200, 200)


def test_the_direct_way_is_taken_when_nobody_else_reads(program: RingProgram, inline: Hub) -> None:
    bound = program.bind()
    alone = inline.subscribe(bound.selector)
    program.produce(300)
    direct = alone.take_strided(100)
    other = inline.subscribe(bound.selector)
    shared = alone.take_strided(100)
    other.close()
    again = alone.take_strided(1000)

    assert direct is not None
    assert again is not None
    assert (direct.records, shared, again.records) == (100, None, 200)
    assert inline.stats().delivered == 300


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Stay on one CPU: a perf buffer tells of its losses with its own next record."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def test_perf_buffers_are_read_like_rings(
    program: RingProgram, require: Require, one_cpu: None
) -> None:
    require("perf_events")
    hub = Hub(PerfReader(program.perf_fd, "perf_events", pages=4))
    bound = program.bind(perf=True)
    stream: EventStream[Any] = EventStream(
        hub.subscribe(bound.selector), bound.cls, bound.selector, 0
    )
    program.produce(100, program="produce_perf")
    found = [(event.number, event.origin == event.cpu) for event in stream]
    program.produce(1000, program="produce_perf")
    more = sum(1 for _ in stream)
    program.produce(1, program="produce_perf")
    more += sum(1 for _ in stream)
    batches: BatchStream[Any] = BatchStream(hub.subscribe(bound.selector), bound.layout, 0)
    program.produce(5, program="produce_perf")
    packed = [number for batch in batches for number in batch["number"]]
    counts = hub.stats()
    hub.close()

    assert found == [(number, True) for number in range(100)]
    assert packed == list(range(1101, 1106))
    assert counts.lost > 0
    assert more + counts.lost == 1001
    assert (counts.unknown, counts.malformed) == (0, 0)


# ---- asleep, awake, closed ---------------------------------------------------------


def voluntary_switches(thread: int) -> int:
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.any_kernel
def test_nothing_wakes_up_while_nothing_happens(program: RingProgram, hub: Hub) -> None:
    streams = [events(program, hub) for _ in range(2)]
    consumers: list[Consumer] = [stream._consumer for stream in streams]
    threads = [threading.Thread(target=list, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    sleepers = [thread.native_id for thread in threads]
    if hub._pump is not None:
        sleepers.append(hub._pump.thread.native_id)
    while not all(consumer.asleep for consumer in consumers):
        time.sleep(0.001)
    time.sleep(0.05)

    before = [voluntary_switches(sleeper or 0) for sleeper in sleepers]
    wakeups = [consumer.waiter.wakeups for consumer in consumers]
    time.sleep(1)
    after = [voluntary_switches(sleeper or 0) for sleeper in sleepers]
    wakeups_after = [consumer.waiter.wakeups for consumer in consumers]
    hub.close()
    for thread in threads:
        thread.join(10)

    assert after == before
    assert wakeups_after == wakeups


@pytest.mark.any_kernel
def test_a_ring_that_is_held_back_wakes_nobody_again_and_again(
    program: RingProgram, hub: Hub
) -> None:
    full = events(program, hub, capacity=1, overflow="block")
    keen = events(program, hub)
    program.produce(10)
    assert next(iter(keen)).number == 0
    thread = threading.Thread(target=list, args=(keen,))
    thread.start()
    while not keen._consumer.asleep:
        time.sleep(0.001)
    time.sleep(0.05)

    before = voluntary_switches(thread.native_id or 0)
    time.sleep(0.5)
    after = voluntary_switches(thread.native_id or 0)
    found = []
    for event in full:
        found.append(event.number)
        if len(found) == 10:
            break
    hub.close()
    thread.join(10)

    assert after == before
    assert found == list(range(10))
    assert keen.counts().delivered == 10


@pytest.mark.any_kernel
def test_an_idle_event_loop_sleeps_too(program: RingProgram, inline: Hub) -> None:
    stream = events(program, inline)

    async def main() -> tuple[int, int]:
        task = asyncio.ensure_future(_count(stream))
        await asyncio.sleep(0.05)
        selects = 0
        selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
        select = selector.select

        def counted(timeout: float | None = None) -> Any:
            nonlocal selects
            selects += 1
            return select(timeout)

        selector.select = counted
        await asyncio.sleep(1)
        seen = selects
        inline.close()
        return seen, await task

    selects, delivered = asyncio.run(main())

    # Our own sleep ends with one or two.
    assert (selects <= 3, delivered) == (True, 0)


async def _count(stream: EventStream[Any]) -> int:
    return len([event async for event in stream])


def test_a_close_is_bounded_under_a_flood_and_wakes_everybody(
    program: RingProgram, hub: Hub
) -> None:
    streams = [events(program, hub) for _ in range(3)]
    threads = [threading.Thread(target=list, args=(stream,)) for stream in streams]
    with program.producer(1_000_000):
        for thread in threads:
            thread.start()
        while hub.stats().delivered < 10_000:
            time.sleep(0.001)
        hub.close()
        for thread in threads:
            thread.join(20)
        alive = [thread.is_alive() for thread in threads]
    counts = hub.stats()

    assert alive == [False] * 3
    assert 3 * counts.records == counts.delivered + counts.dropped


@pytest.mark.any_kernel
def test_the_interpreter_goes_on_while_a_stream_waits(program: RingProgram, hub: Hub) -> None:
    stream = events(program, hub)
    thread = threading.Thread(target=list, args=(stream,))
    thread.start()
    while not stream._consumer.asleep:
        time.sleep(0.001)

    turns = sum(1 for _ in range(100_000))
    still_asleep = stream._consumer.asleep
    hub.close()
    thread.join(10)

    assert (turns, still_asleep) == (100_000, True)


def test_a_spinning_reader_gets_the_same(program: RingProgram) -> None:
    hub = Hub(RingReader(program.ring_fd, "events"), spin_us=2000)
    found = []
    with program.producer(20, pause=0.001):
        for event in events(program, hub):
            found.append(event.number)
            if len(found) == 1280:
                break
    hub.close()

    assert found == list(range(1280))


def numbers_read_by_nobody(source: str) -> list[int]:
    perf = source == "produce_perf"

    def act() -> list[int]:
        program = RingProgram(RING_BYTES)
        reader = (
            PerfReader(program.perf_fd, "perf_events", 4)
            if perf
            else RingReader(program.ring_fd, "events")
        )
        hub = Hub(reader)
        bound = program.bind(perf=perf)
        consumer = hub.subscribe(bound.selector)
        program.produce(5, program=source)
        stream: EventStream[Any] = EventStream(consumer, bound.cls, bound.selector, 0)
        found = [event.number for event in stream]
        hub.close()
        program.close()
        return found

    RingProgram().close()  # compiled, and imported, while that is allowed
    return as_nobody(act)


def test_bpf_and_perfmon_are_all_that_reading_a_ring_needs(require: Require) -> None:
    require("ring_buffer")

    assert numbers_read_by_nobody("produce") == list(range(5))


def test_reading_a_perf_buffer_needs_what_the_kernel_is_set_to(require: Require) -> None:
    require("perf_events")

    # Debian's kernels know a level 3, at which CAP_PERFMON is not enough.
    if int(Path("/proc/sys/kernel/perf_event_paranoid").read_text()) <= 2:
        assert numbers_read_by_nobody("produce_perf") == list(range(5))
    else:
        with pytest.raises(AssertionError, match=r"sysctl kernel\.perf_event_paranoid=2"):
            numbers_read_by_nobody("produce_perf")


# ---- fork ----------------------------------------------------------------------------


def test_a_forked_child_is_refused_and_its_parent_loses_nothing(
    program: RingProgram, hub: Hub
) -> None:
    stream = events(program, hub)
    program.produce(10)
    iterator = iter(stream)
    first = next(iterator).number
    rest: list[int] = []
    reads, writes = os.pipe()
    for _ in range(20):
        program.produce(10)
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                try:
                    list(iterator)
                except ClosedError as error:
                    os.write(writes, str(error).encode() + b"\n")
                hub.abandon()
                hub.close()
            os._exit(0)
        os.waitpid(child, 0)
        rest += [next(iterator).number for _ in range(5)]
    os.close(writes)
    with open(reads) as pipe:
        told = pipe.read().splitlines()
    hub.close()
    rest += [event.number for event in iterator]

    assert len(told) == 20
    assert all("it belongs to process" in line and "forked" in line for line in told)
    assert [first, *rest] == list(range(210))


def test_nothing_is_left_after_many_hubs(program: RingProgram) -> None:
    def once() -> None:
        hub = Hub(RingReader(program.ring_fd, "events"), pump="thread")
        stream = events(program, hub, 0)
        list(stream)
        hub.close()

    def held() -> tuple[int, int, int]:
        gc.collect()
        return (
            len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - a name each is enough
            threading.active_count(),
            Path("/proc/self/maps").read_text().count("bpf-map"),
        )

    once()
    before = held()
    for _ in range(50):
        once()

    assert held() == before
