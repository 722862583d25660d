"""Hubs and consumers over a fake ring: who gets what, who wakes, what is counted, how it ends."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kerneltrace_core.errors import ClosedError, OptionError, RingError
from kerneltrace_core.events.engine import Selector
from kerneltrace_core.ring.frames import split
from kerneltrace_core.session.consumer import Consumer
from kerneltrace_core.session.hub import Hub
from kerneltrace_core.session.streams import RawStream
from kerneltrace_core.testing.ring import FakeRing

pytestmark = pytest.mark.unit

A, B, UNKNOWN = 1, 2, 99
SELECT_A = Selector(16, True, 0, 2, (A,))
SELECT_B = Selector(24, True, 0, 2, (B,))
LINUX = sys.platform.startswith("linux")


def a(number: int) -> bytes:
    return struct.pack("=HHIQ", A, 16, 0, number)


def b(number: int) -> bytes:
    return struct.pack("=HHIQQ", B, 24, 0, number, 0)


@pytest.fixture(params=[pytest.param(True, id="epoll"), pytest.param(False, id="listen")])
def ring(request: pytest.FixtureRequest) -> Iterator[FakeRing]:
    if request.param and not LINUX:
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
def inline(ring: FakeRing) -> Iterator[Hub]:
    hub = Hub(ring, session="test")
    yield hub
    hub.close()


def numbers(batch: tuple[bytes, int, int] | None, selector: Selector = SELECT_A) -> list[int]:
    """Return the numbers in a batch's records of a type."""
    assert batch is not None
    frames, skip, take = batch
    wanted = [
        payload
        for payload, _ in split(frames)
        if len(payload) == selector.size and payload[0] in selector.tags
    ]
    return [struct.unpack_from("=Q", payload, 8)[0] for payload in wanted[skip : skip + take]]


def all_numbers(consumer: Consumer, count: int, selector: Selector = SELECT_A) -> list[int]:
    """Return the next so many numbers."""
    found: list[int] = []
    while len(found) < count:
        found += numbers(consumer.next_batch(10), selector)
    return found


def in_thread(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in 10 s"
        time.sleep(0.001)


def test_a_consumer_gets_its_type_and_no_other(hub: Hub, ring: FakeRing) -> None:
    first, second = hub.subscribe(SELECT_A), hub.subscribe(SELECT_B)
    ring.submit(a(1), b(2), a(3), b(4), b(5))

    assert all_numbers(first, 2) == [1, 3]
    assert all_numbers(second, 3, SELECT_B) == [2, 4, 5]
    assert (first.settle().records, first.settle().other) == (5, 3)
    assert (second.settle().records, second.settle().other) == (5, 2)


def test_several_consumers_of_one_type_each_get_every_record(hub: Hub, ring: FakeRing) -> None:
    consumers = [hub.subscribe(SELECT_A) for _ in range(3)]
    ring.submit(*(a(number) for number in range(100)))

    for consumer in consumers:
        assert all_numbers(consumer, 100) == list(range(100))


def test_a_consumer_of_everything_gets_everything(hub: Hub, ring: FakeRing) -> None:
    consumer = hub.subscribe(None)
    ring.submit(a(1), b"", b(2), b"odd")

    batches = []
    while sum(batch[2] for batch in batches) < 4:
        batch = consumer.next_batch(10)
        assert batch is not None
        batches.append(batch)

    assert [p for frames, _, _ in batches for p, _ in split(frames)] == [a(1), b"", b(2), b"odd"]


def test_a_sleeping_thread_is_woken_by_what_comes(hub: Hub, ring: FakeRing) -> None:
    consumer = hub.subscribe(SELECT_A)
    thread, results = in_thread(lambda: numbers(consumer.next_batch()))
    wait_until(lambda: consumer.asleep)

    ring.submit(a(7))
    thread.join(10)

    assert results == [[7]]


def test_all_sleeping_threads_get_their_share(hub: Hub, ring: FakeRing) -> None:
    first, second = hub.subscribe(SELECT_A), hub.subscribe(SELECT_B)
    threads = [
        in_thread(lambda: numbers(first.next_batch())),
        in_thread(lambda: numbers(second.next_batch(), SELECT_B)),
    ]
    wait_until(lambda: first.asleep and second.asleep)

    ring.submit(b(1), a(2))
    for thread, _ in threads:
        thread.join(10)

    assert [results for _, results in threads] == [[[2]], [[1]]]


def test_a_record_of_another_type_lets_a_sleeper_sleep_on(inline: Hub, ring: FakeRing) -> None:
    consumer = inline.subscribe(SELECT_A)
    thread, results = in_thread(lambda: numbers(consumer.next_batch()))
    wait_until(lambda: consumer.asleep)
    ring.submit(b(1))
    wait_until(lambda: consumer.counts.other == 1)

    still_waiting = not results
    ring.submit(a(2))
    thread.join(10)

    assert (still_waiting, results) == (True, [[2]])


def test_nothing_for_the_timeout_ends_a_wait(hub: Hub, ring: FakeRing) -> None:
    consumer = hub.subscribe(SELECT_A)
    begin = time.monotonic()

    assert consumer.next_batch(0.05) is None
    assert time.monotonic() - begin >= 0.05


def test_a_timeout_of_zero_takes_what_is_there(inline: Hub, ring: FakeRing) -> None:
    consumer = inline.subscribe(SELECT_A)
    ring.submit(*(b(number) for number in range(20_000)), a(1))

    assert numbers(consumer.next_batch(0)) == [1]
    assert consumer.next_batch(0) is None


def test_a_flood_of_another_type_does_not_outlast_the_timeout(inline: Hub, ring: FakeRing) -> None:
    consumer = inline.subscribe(SELECT_A)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            ring.submit(*[b(0)] * 1000)

    thread, _ = in_thread(flood)
    try:
        assert consumer.next_batch(0.05) is None
    finally:
        stop.set()
        thread.join(10)


def test_the_oldest_are_dropped_and_counted(inline: Hub, ring: FakeRing) -> None:
    slow = inline.subscribe(SELECT_A, capacity=10, overflow="drop_oldest")
    keen = inline.subscribe(SELECT_A)
    ring.submit(*(a(number) for number in range(25)))

    assert all_numbers(keen, 25) == list(range(25))
    assert all_numbers(slow, 10) == list(range(15, 25))
    assert (slow.settle().dropped, slow.settle().delivered) == (15, 10)


def test_the_newest_are_dropped_and_counted(inline: Hub, ring: FakeRing) -> None:
    slow = inline.subscribe(SELECT_A, capacity=10, overflow="drop_newest")
    keen = inline.subscribe(SELECT_A)
    ring.submit(*(a(number) for number in range(25)))

    assert all_numbers(keen, 25) == list(range(25))
    assert all_numbers(slow, 10) == list(range(10))
    assert (slow.settle().dropped, slow.settle().delivered) == (15, 10)


def test_a_full_blocking_consumer_leaves_the_rest_in_the_ring(hub: Hub, ring: FakeRing) -> None:
    blocking = hub.subscribe(SELECT_A, capacity=10, overflow="block")
    keen = hub.subscribe(SELECT_A)
    ring.submit(*(a(number) for number in range(25)))

    early = all_numbers(keen, 10)
    nothing = keen.next_batch(0.05)
    left = ring.pending_bytes()
    late = all_numbers(blocking, 10)

    assert (early, nothing, left) == (list(range(10)), None, 15 * 24)
    assert late == list(range(10))
    assert all_numbers(keen, 10) == list(range(10, 20))
    assert all_numbers(blocking, 15) == list(range(10, 25))
    assert blocking.settle().dropped == 0


def test_others_go_on_when_a_blocking_consumer_has_made_space(hub: Hub, ring: FakeRing) -> None:
    blocking = hub.subscribe(SELECT_A, capacity=1, overflow="block")
    keen = hub.subscribe(SELECT_A)
    ring.submit(a(1), a(2))
    assert all_numbers(keen, 1) == [1]
    thread, results = in_thread(lambda: numbers(keen.next_batch()))
    wait_until(lambda: keen.asleep)

    assert all_numbers(blocking, 1) == [1]
    thread.join(10)

    assert results == [[2]]


def test_others_go_on_when_a_full_blocking_consumer_is_closed(hub: Hub, ring: FakeRing) -> None:
    blocking = hub.subscribe(SELECT_A, capacity=1, overflow="block")
    keen = hub.subscribe(SELECT_A)
    ring.submit(a(1), a(2))
    assert all_numbers(keen, 1) == [1]
    thread, results = in_thread(lambda: numbers(keen.next_batch()))
    wait_until(lambda: keen.asleep)

    blocking.close()
    thread.join(10)
    hub.close()  # or its thread would wait for ever
    thread.join(10)

    assert results == [[2]]


def test_each_record_is_counted_as_one_thing(ring: FakeRing) -> None:
    known = Selector(2, False, 0, 2, (A, B, 3))
    third = struct.pack("=HHIQ", 3, 16, 0, 0)
    hub = Hub(ring, known=known)
    consumer = hub.subscribe(SELECT_A, capacity=3)
    ring.submit(a(1), a(2), third, struct.pack("=HHI", UNKNOWN, 8, 0), a(3)[:12], b"", a(4), a(5))
    ring.discard()

    hub.pull()
    delivered = all_numbers(consumer, 3)
    counts, mine = hub.stats(), consumer.settle()
    hub.close()

    assert delivered == [2, 4, 5]
    assert (counts.records, counts.unknown, counts.malformed, counts.unclaimed) == (8, 1, 2, 1)
    assert (counts.delivered, counts.dropped, counts.discarded) == (3, 1, 1)
    assert counts.records == (
        counts.delivered + counts.dropped + counts.unknown + counts.malformed + counts.unclaimed
    )
    assert (mine.records, mine.other, mine.malformed) == (8, 2, 2)
    assert mine.records == mine.delivered + mine.dropped + mine.other + mine.malformed


def test_without_known_tags_those_that_are_read_are_known(inline: Hub, ring: FakeRing) -> None:
    first, second = inline.subscribe(SELECT_A), inline.subscribe(SELECT_B)
    ring.submit(a(1), b(1), struct.pack("=HHI", UNKNOWN, 8, 0), a(3)[:12], b(1)[:10], b"\x01")

    assert (all_numbers(first, 1), all_numbers(second, 1, SELECT_B)) == ([1], [1])
    counts = inline.stats()
    assert (counts.records, counts.unknown, counts.malformed) == (6, 1, 3)
    assert (counts.unclaimed, counts.delivered) == (0, 2)


def test_without_tags_only_the_size_tells(inline: Hub, ring: FakeRing) -> None:
    consumer = inline.subscribe(Selector(16, True))
    ring.submit(a(1), b(2), b"short")

    batch = consumer.next_batch(10)
    counts = inline.stats()

    assert batch is not None
    assert batch[1:] == (0, 1)
    assert (counts.unknown, counts.malformed, counts.delivered) == (0, 2, 1)


def test_unknown_and_malformed_are_warned_of_once(
    inline: Hub, ring: FakeRing, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = inline.subscribe(SELECT_A)
    with caplog.at_level(logging.WARNING, "kerneltrace"):
        for _ in range(3):
            ring.submit(b(1), a(1)[:12], a(1))
            all_numbers(consumer, 1)

    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("ring events of session test has unknown records, whose type tag")
    assert told[1].startswith("ring events of session test has malformed records, whose size")


def test_what_a_full_queue_drops_is_warned_of_once(
    inline: Hub, ring: FakeRing, caplog: pytest.LogCaptureFixture
) -> None:
    slow = inline.subscribe(SELECT_A, capacity=2, overflow="drop_oldest")
    keen = inline.subscribe(SELECT_A)
    with caplog.at_level(logging.WARNING, "kerneltrace"):
        ring.submit(a(1), a(2))
        all_numbers(keen, 2)
        silent = list(caplog.records)
        for _ in range(3):
            ring.submit(a(1))
            all_numbers(keen, 1)

    assert (silent, slow.settle().dropped) == ([], 3)
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith("ring events of session test has a reader that is slower than")


def test_what_a_blocking_reader_leaves_at_the_end_is_no_warning(
    hub: Hub, ring: FakeRing, caplog: pytest.LogCaptureFixture
) -> None:
    blocking = hub.subscribe(SELECT_A, capacity=1, overflow="block")
    ring.submit(a(1), a(2), a(3))
    with caplog.at_level(logging.WARNING, "kerneltrace"):
        hub.close()

    assert (blocking.settle().dropped, caplog.records) == (2, [])


def test_a_function_tells_types_apart(inline: Hub, ring: FakeRing) -> None:
    from kerneltrace_core.events.discriminate import keep_by_function

    even = inline.subscribe(
        Selector(16, True), only=keep_by_function(lambda payload: payload[8] % 2 == 0)
    )
    ring.submit(*(a(number) for number in range(6)))

    assert all_numbers_of_size(even, 3) == [0, 2, 4]
    counts = inline.stats()
    assert (even.settle().other, counts.unclaimed, counts.delivered) == (3, 3, 3)


def all_numbers_of_size(consumer: Consumer, count: int) -> list[int]:
    batch = consumer.next_batch(10)
    assert batch is not None
    assert batch[2] == count
    return [struct.unpack_from("=Q", payload, 8)[0] for payload, _ in split(batch[0])]


def test_what_such_a_function_raises_reaches_its_reader_alone(inline: Hub, ring: FakeRing) -> None:
    def broken(frames: bytes) -> tuple[bytes, int]:
        raise ZeroDivisionError("mine")

    bad = inline.subscribe(Selector(16, True), only=broken)
    good = inline.subscribe(SELECT_A)
    ring.submit(a(1))

    with pytest.raises(ZeroDivisionError, match="mine"):
        bad.next_batch(10)
    assert all_numbers(good, 1) == [1]


def test_few_of_many_do_not_keep_the_memory_of_all(inline: Hub, ring: FakeRing) -> None:
    consumer = inline.subscribe(SELECT_A)
    ring.submit(*(b(number) for number in range(1000)), a(1))

    batch = consumer.next_batch(10)

    assert batch is not None
    assert len(batch[0]) == 24
    assert numbers(batch) == [1]


def test_closing_wakes_everybody_who_sleeps(hub: Hub, ring: FakeRing) -> None:
    consumers = [hub.subscribe(SELECT_A) for _ in range(3)]
    threads = [in_thread(consumer.next_batch) for consumer in consumers]
    wait_until(lambda: all(consumer.asleep for consumer in consumers))

    hub.close()
    for thread, _ in threads:
        thread.join(10)

    assert [results for _, results in threads] == [[None]] * 3
    assert ring.closed


def test_what_was_in_the_ring_at_the_close_is_still_delivered(hub: Hub, ring: FakeRing) -> None:
    consumer = hub.subscribe(SELECT_A)
    ring.submit(a(1), a(2))

    hub.close()

    found = []
    while (batch := consumer.next_batch()) is not None:
        found += numbers(batch)
    assert found == [1, 2]
    assert hub.stats().delivered == 2


def test_closing_is_bounded_under_a_flood(hub: Hub, ring: FakeRing) -> None:
    consumer = hub.subscribe(SELECT_A)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            ring.submit(*[a(0)] * 1000)

    def read() -> None:
        while consumer.next_batch() is not None:
            pass

    threads = [in_thread(flood), in_thread(read)]
    try:
        wait_until(lambda: consumer.counts.delivered > 10_000)
        hub.close()
        threads[1][0].join(10)
        assert not threads[1][0].is_alive()
    finally:
        stop.set()
        threads[0][0].join(10)
    counts = hub.stats()
    assert counts.records == counts.delivered + counts.dropped


def test_closing_again_does_nothing_and_nobody_can_join(hub: Hub) -> None:
    hub.close()
    hub.close()

    with pytest.raises(ClosedError, match=r"read ring events of session test: it is closed"):
        hub.subscribe(SELECT_A)


def test_closing_a_consumer_wakes_it_and_leaves_the_others(hub: Hub, ring: FakeRing) -> None:
    leaving, staying = hub.subscribe(SELECT_A), hub.subscribe(SELECT_A)
    thread, results = in_thread(leaving.next_batch)
    wait_until(lambda: leaving.asleep)

    leaving.close()
    thread.join(10)
    ring.submit(a(1))

    assert results == [None]
    assert leaving.next_batch() is None
    assert all_numbers(staying, 1) == [1]
    assert hub.stats().consumers == 1


def test_what_a_closed_consumer_had_waiting_is_abandoned(inline: Hub, ring: FakeRing) -> None:
    leaving, staying = inline.subscribe(SELECT_A), inline.subscribe(SELECT_A)
    ring.submit(a(1), a(2), a(3))
    all_numbers(staying, 3)

    assert leaving.close() == 3
    counts = inline.stats()
    assert (counts.abandoned, counts.delivered, counts.waiting) == (3, 3, 0)


def test_a_forgotten_consumer_leaves(inline: Hub, ring: FakeRing) -> None:
    inline.subscribe(SELECT_A, capacity=1, overflow="block")
    gc.collect()
    staying = inline.subscribe(SELECT_A)
    ring.submit(a(1), a(2), a(3))

    assert all_numbers(staying, 3) == [1, 2, 3]
    assert inline.stats().consumers == 1


def test_nothing_is_drained_for_nobody(hub: Hub, ring: FakeRing) -> None:
    ring.submit(a(1))
    drained_early = hub.pull()
    consumer = hub.subscribe(SELECT_A)

    assert drained_early is False
    assert all_numbers(consumer, 1) == [1]


def test_a_ring_that_cannot_be_read_fails_for_everybody(hub: Hub, ring: FakeRing) -> None:
    consumers = [hub.subscribe(SELECT_A) for _ in range(2)]
    threads = [in_thread(consumer.next_batch) for consumer in consumers]
    wait_until(lambda: all(consumer.asleep for consumer in consumers))

    ring.fail(RingError("drain ring events: it holds what no kernel writes", errno=74))
    for thread, _ in threads:
        thread.join(10)

    for _, (error,) in threads:
        assert isinstance(error, RingError)
        assert str(error).startswith("read ring events: drain ring events: it holds")
        assert error.errno == 74
    with pytest.raises(RingError, match="read ring events"):
        consumers[0].next_batch()
    with pytest.raises(RingError, match="read ring events"):
        hub.subscribe(SELECT_A)


def test_a_pump_that_runs_out_of_memory_tells_the_readers(ring: FakeRing) -> None:
    hub = Hub(ring, pump="thread")
    consumer = hub.subscribe(SELECT_A)
    thread, results = in_thread(consumer.next_batch)
    wait_until(lambda: consumer.asleep)

    ring.fail(MemoryError())
    thread.join(10)
    hub.close()
    thread.join(10)

    assert [str(each) for each in results] == ["read ring events: MemoryError"]


def test_a_reader_that_fails_still_delivers_what_came_before(ring: FakeRing) -> None:
    hub = Hub(ring)
    slow, keen = hub.subscribe(SELECT_A), hub.subscribe(SELECT_A)
    ring.submit(a(1))
    all_numbers(keen, 1)
    ring.fail(OSError(5, "Input/output error"))
    with pytest.raises(RingError, match="Input/output error"):
        keen.next_batch()

    assert all_numbers(slow, 1) == [1]
    with pytest.raises(RingError, match="Input/output error"):
        slow.next_batch()
    hub.close()


def test_many_threads_share_the_work_and_lose_nothing(hub: Hub, ring: FakeRing) -> None:
    consumers = [hub.subscribe(SELECT_A) for _ in range(4)]
    threads = [in_thread(lambda c=consumer: all_numbers(c, 5000)) for consumer in consumers]
    sent = 0
    while sent < 5000:
        if ring.pending_bytes() < 1 << 19:
            ring.submit(*(a(number) for number in range(sent, sent + 100)))
            sent += 100
    for thread, _ in threads:
        thread.join(20)

    assert [results for _, results in threads] == [[list(range(5000))]] * 4
    assert hub.stats().delivered == 20_000


def test_drains_are_timed(inline: Hub, ring: FakeRing) -> None:
    consumer = inline.subscribe(SELECT_A)
    for number in range(3):
        ring.submit(a(number))
        all_numbers(consumer, 1)
    consumer.next_batch(0)

    counts = inline.stats()

    assert (counts.drains, sum(counts.drain_ns_buckets)) == (3, 3)
    assert 0 < counts.drain_ns_max <= counts.drain_ns


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_is_told_so(hub: Hub, ring: FakeRing) -> None:
    consumer = hub.subscribe(SELECT_A)
    ring.submit(a(1))
    reads, writes = os.pipe()

    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            try:
                consumer.next_batch(1)
            except ClosedError as error:
                os.write(writes, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writes)
    told = os.read(reads, 1000).decode()
    os.close(reads)

    assert told.startswith(f"read ring events of session test: it belongs to process {os.getpid()}")
    assert "forked" in told
    assert all_numbers(consumer, 1) == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_closes_a_stream_that_a_thread_of_the_parent_reads(hub: Hub) -> None:
    stream = RawStream(hub.subscribe(None))
    thread, _ = in_thread(lambda: list(stream))
    wait_until(lambda: stream._consumer.asleep)

    child = os.fork()
    if not child:
        signal.alarm(10)  # kills it if it waits for the thread, which it has not
        stream.close()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    stream.close()
    thread.join(10)

    assert status == 0


@pytest.mark.parametrize("overflow", ["", "drop", None])
def test_an_unknown_overflow_is_refused(inline: Hub, overflow: str) -> None:
    with pytest.raises(OptionError, match=r"is not one of"):
        inline.subscribe(SELECT_A, overflow=overflow)


def test_a_timeout_of_zero_empties_a_ring_smaller_than_a_chunk() -> None:
    ring = FakeRing(size_bytes=1024)
    hub = Hub(ring)
    consumer = hub.subscribe(SELECT_A)
    ring.submit(a(1), a(2))

    assert numbers(consumer.next_batch(0)) == [1, 2]
    hub.close()


def test_the_only_reader_takes_no_more_at_once_than_its_queue_holds(
    inline: Hub, ring: FakeRing
) -> None:
    consumer = inline.subscribe(SELECT_A, capacity=3)
    ring.submit(*(a(number) for number in range(8)))

    batches = [numbers(consumer.next_batch(0)) for _ in range(3)]

    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert (inline.stats().delivered, inline.stats().dropped) == (8, 0)


def test_known_tags_say_nothing_where_readers_look_elsewhere(ring: FakeRing) -> None:
    hub = Hub(ring, known=Selector(2, False, 0, 2, (UNKNOWN,)))
    consumer = hub.subscribe(Selector(16, True, 4, 1, (0,)))
    ring.submit(a(1), a(2)[:4] + b"\x01" + a(2)[5:], a(3))

    batch = consumer.next_batch(10)
    counts = hub.stats()
    hub.close()

    assert batch is not None
    assert batch[2] == 2
    assert (counts.delivered, counts.unknown, counts.malformed) == (2, 1, 0)


def test_a_reader_of_raw_records_claims_what_nobody_else_reads(inline: Hub, ring: FakeRing) -> None:
    raw, typed = inline.subscribe(None), inline.subscribe(SELECT_A)
    ring.submit(a(1), b(1), a(2)[:12])

    assert raw.next_batch(10)[2] == 3  # type: ignore[index]
    assert all_numbers(typed, 1) == [1]
    counts = inline.stats()
    assert (counts.records, counts.unclaimed) == (3, 0)
    assert (counts.unknown, counts.malformed) == (1, 1)


def test_nothing_sent_between_a_look_and_a_sleep_is_overslept(hub: Hub, ring: FakeRing) -> None:
    consumer = hub.subscribe(SELECT_A)
    original = consumer.waiter.wait

    def late(timeout: float | None) -> None:
        # Asleep as far as it knows, and yet to fall asleep.
        ring.submit(a(1))
        original(timeout)

    consumer.waiter.wait = late  # type: ignore[method-assign]

    assert numbers(consumer.next_batch(10)) == [1]


def test_nothing_sent_before_the_sleep_is_announced_is_overslept(ring: FakeRing) -> None:
    hub = Hub(ring)
    consumer = hub.subscribe(SELECT_A)
    pull, sent = hub.take_alone, []

    def then_send(puller: Consumer) -> tuple[bool, tuple[bytes, int, int] | None]:
        found = pull(puller)
        if not sent:
            sent.append(ring.submit(a(1)))
        return found

    hub.take_alone = then_send  # type: ignore[method-assign]
    begin = time.monotonic()

    assert numbers(consumer.next_batch(10)) == [1]
    assert time.monotonic() - begin < 9
    hub.close()


def test_one_who_joins_between_two_looks_leaves_nobody_asleep(ring: FakeRing) -> None:
    hub = Hub(ring)
    first = hub.subscribe(SELECT_A)
    alone, joined = hub.alone, []

    def then_join(puller: Consumer) -> bool:
        found = alone(puller)
        if not joined:
            ring.submit(a(1))
            joined.append(hub.subscribe(SELECT_A))
        return found

    hub.alone = then_join  # type: ignore[method-assign]

    assert numbers(first.next_batch(10)) == [1]
    assert numbers(joined[0].next_batch(10)) == [1]
    hub.close()


def test_what_is_handed_back_after_it_was_added_up_is_counted_right(
    inline: Hub, ring: FakeRing
) -> None:
    consumer = inline.subscribe(SELECT_A)
    ring.submit(a(1), a(2), a(3))
    all_numbers(consumer, 3)
    consumer.close()
    inline.stats()

    consumer.hand_back(2)

    assert (inline.stats().delivered, inline.stats().abandoned) == (1, 2)


@pytest.mark.skipif(not LINUX, reason="there is no epoll here")
def test_a_reader_for_which_no_descriptor_is_left_is_refused(inline: Hub) -> None:
    import resource  # of Linux

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    # One is left: the second that it takes is refused, and the first given back.
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(RingError, match=r"Too many open files \(.*ulimit -n") as refused:
            inline.subscribe(SELECT_A)
        again = os.dup(0)
        os.close(again)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert (refused.value.errno, again) == (errno.EMFILE, free)


def test_a_pump_whose_thread_cannot_start_leaves_nothing_open(
    ring: FakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    free = os.dup(0)
    os.close(free)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RingError) as refused:
            Hub(ring, session="test", pump="thread")
    again = os.dup(0)
    os.close(again)

    assert str(refused.value) == (
        f"start pump thread kerneltrace-test-{ring.name}: can't start new thread (allow more "
        "threads, ulimit -u or pids.max of its control group, or open the session with "
        'pump="inline")'
    )
    assert ring.closed
    assert again <= free  # the ring's own is closed as well


def test_readers_that_left_and_never_asked_do_not_pile_up(inline: Hub) -> None:
    for _ in range(50):
        inline.subscribe(SELECT_A).close()
    last = inline.subscribe(SELECT_A)

    assert [ref() for ref, _, _ in inline._consumers] == [last]
