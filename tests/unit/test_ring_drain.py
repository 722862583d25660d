"""The drain of a ring buffer over plain memory: what is taken, what stops it, what is left."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneltrace_core._native import rings
from kerneltrace_core.errors import ClosedError, RingError
from kerneltrace_core.ring.protocol import Layout
from kerneltrace_core.ring.reader import RingReader

pytestmark = pytest.mark.unit

BUSY = 1 << 31
DISCARD = 1 << 30


class Memory:
    """A ring as the kernel lays it out: two positions, and the data twice in a row."""

    def __init__(self, size: int = 4096, start: int = 0) -> None:
        self.size = size
        self.positions = bytearray(struct.pack("=QQ", start, start))
        self.data = bytearray(b"\xee" * (2 * size))
        self.reader = RingReader.over_memory(self.positions, self.data, "events")

    @property
    def consumer(self) -> int:
        return int(struct.unpack_from("=Q", self.positions, 0)[0])

    @property
    def producer(self) -> int:
        return int(struct.unpack_from("=Q", self.positions, 8)[0])

    def poke(self, position: int, data: bytes) -> None:
        for index, byte in enumerate(data):
            at = (position + index) % self.size
            self.data[at] = self.data[at + self.size] = byte

    def reserve(self, payload: bytes, flags: int = BUSY) -> int:
        """Write a record, as a program does; returns its position."""
        position = self.producer
        self.poke(position, struct.pack("=II", len(payload) | flags, 0xABCD) + payload)
        step = 8 + -(-len(payload) // 8) * 8
        assert position + step - self.consumer <= self.size, "the test's ring is full"
        struct.pack_into("=Q", self.positions, 8, position + step)
        return position

    def commit(self, position: int, length: int, flags: int = 0) -> None:
        self.poke(position, struct.pack("=I", length | flags))

    def submit(self, payload: bytes) -> None:
        self.reserve(payload, flags=0)


def frame(payload: bytes, origin: int = 0) -> bytes:
    return struct.pack("=II", len(payload), origin) + payload + bytes(-len(payload) % 8)


def test_an_empty_ring_gives_nothing() -> None:
    memory = Memory()

    assert memory.reader.drain() == (b"", 0, 0, 0, False)
    assert memory.reader.pending_bytes() == 0


def test_records_become_frames_and_their_space_is_given_back() -> None:
    memory = Memory()
    payloads = [b"12345678", b"abc", b"", bytes(range(200))]
    for payload in payloads:
        memory.submit(payload)

    drained = memory.reader.drain()

    assert drained == (b"".join(map(frame, payloads)), 4, 0, 0, False)
    assert memory.consumer == memory.producer == 16 + 16 + 8 + 208


def test_a_record_that_is_being_written_stops_the_drain_until_it_is_done() -> None:
    memory = Memory()
    memory.submit(b"first...")
    busy = memory.reserve(b"second..")
    memory.submit(b"third...")

    before = memory.reader.drain()
    again = memory.reader.drain()
    consumer_before = memory.consumer
    memory.commit(busy, 8)
    after = memory.reader.drain()

    assert before == (frame(b"first..."), 1, 0, 0, False)
    assert again == (b"", 0, 0, 0, False)
    assert consumer_before == busy
    assert after == (frame(b"second..") + frame(b"third..."), 2, 0, 0, False)


def test_discarded_records_are_skipped_and_counted() -> None:
    memory = Memory()
    given_up = memory.reserve(b"given up")
    memory.submit(b"kept....")
    memory.commit(given_up, 8, DISCARD)
    memory.reserve(b"the last", flags=DISCARD)

    drained = memory.reader.drain()

    assert drained == (frame(b"kept...."), 1, 2, 0, False)
    assert memory.consumer == memory.producer


def test_a_discarded_record_that_is_still_busy_stops_the_drain() -> None:
    memory = Memory()
    memory.reserve(b"whatever", flags=BUSY | DISCARD)

    assert memory.reader.drain() == (b"", 0, 0, 0, False)
    assert memory.consumer == 0


def test_a_record_across_the_end_of_the_ring_is_whole() -> None:
    memory = Memory(4096, start=3 * 4096 - 16)
    memory.submit(bytes(range(100)))
    memory.submit(b"after it")

    drained = memory.reader.drain()

    assert drained.frames == frame(bytes(range(100))) + frame(b"after it")
    assert memory.consumer == 3 * 4096 - 16 + 112 + 16


def test_positions_beyond_32_bits_are_right() -> None:
    memory = Memory(4096, start=(1 << 40) + 8)
    memory.submit(b"far away")

    assert memory.reader.drain().frames == frame(b"far away")
    assert memory.consumer == (1 << 40) + 24


def test_a_full_ring_is_taken_whole() -> None:
    memory = Memory(4096, start=64)
    for number in range(256):
        memory.submit(struct.pack("=Q", number))

    drained = memory.reader.drain()

    assert drained.records == 256
    assert drained.frames == b"".join(frame(struct.pack("=Q", number)) for number in range(256))


def test_the_limit_of_records_leaves_the_rest() -> None:
    memory = Memory()
    for number in range(5):
        memory.submit(struct.pack("=Q", number))

    first = memory.reader.drain(limit_records=2)
    rest = memory.reader.drain(limit_records=3)

    assert (first.records, first.more) == (2, True)
    assert (rest.records, rest.more) == (3, False)
    assert rest.frames == b"".join(frame(struct.pack("=Q", number)) for number in (2, 3, 4))


def test_a_limit_of_no_records_takes_none() -> None:
    memory = Memory()
    memory.submit(b"12345678")

    assert memory.reader.drain(limit_records=0) == (b"", 0, 0, 0, True)
    assert memory.consumer == 0


def test_the_limit_of_bytes_leaves_what_does_not_fit() -> None:
    memory = Memory()
    for number in range(5):
        memory.submit(struct.pack("=Q", number))

    drained = memory.reader.drain(limit_bytes=40)

    assert (drained.records, len(drained.frames), drained.more) == (2, 32, True)
    assert memory.consumer == 32


def test_a_record_longer_than_the_limit_is_taken_alone() -> None:
    memory = Memory(1 << 20)
    long = bytes(range(256)) * 2048  # 512 KiB: more than a chunk
    memory.reserve(b"given up", flags=DISCARD)
    memory.submit(long)
    memory.submit(b"after it")

    first = memory.reader.drain(limit_bytes=64)
    second = memory.reader.drain()

    assert first == (frame(long), 1, 1, 0, True)
    assert second.frames == frame(b"after it")


def test_only_discarded_records_end_after_one_turn_of_the_ring() -> None:
    memory = Memory()
    for _ in range(256):
        memory.reserve(b"given up", flags=DISCARD)

    drained = memory.reader.drain()

    assert (drained.records, drained.discarded) == (0, 256)


@pytest.mark.parametrize("length", [4096, (1 << 30) - 1, 64])
def test_a_length_beyond_what_was_produced_is_an_error(length: int) -> None:
    memory = Memory()
    memory.submit(b"12345678")
    memory.commit(0, length)

    with pytest.raises(RingError, match=r"drain ring events: it holds what no kernel writes"):
        memory.reader.drain()
    with pytest.raises(RingError, match=r"drain ring events"):
        memory.reader.drain_strided(Layout(8), 10)


def test_records_of_one_type_come_without_headers() -> None:
    memory = Memory(4096, start=4096 - 20 * 8)
    for number in range(30):
        memory.submit(struct.pack("=HHIQ", 7, 16, 0, number))

    strided = memory.reader.drain_strided(Layout(16, 0, 2, (3, 7)), 100)

    expected = b"".join(struct.pack("=HHIQ", 7, 16, 0, number) for number in range(30))
    assert strided == (bytearray(expected), 30, 0, False)
    assert memory.consumer == memory.producer


def test_a_strided_drain_stops_before_another_tag_and_leaves_it_to_the_ordinary_one() -> None:
    memory = Memory()
    memory.submit(struct.pack("=HHI", 7, 8, 1))
    memory.reserve(bytes(24), flags=DISCARD)
    memory.submit(struct.pack("=HHI", 7, 8, 2))
    memory.submit(struct.pack("=HHI", 9, 8, 3))
    layout = Layout(8, 0, 2, (7,))

    strided = memory.reader.drain_strided(layout, 100)
    stuck = memory.reader.drain_strided(layout, 100)
    rest = memory.reader.drain()

    assert strided == (struct.pack("=HHIHHI", 7, 8, 1, 7, 8, 2), 2, 1, True)
    assert stuck == (b"", 0, 0, True)
    assert rest.frames == frame(struct.pack("=HHI", 9, 8, 3))


def test_a_strided_drain_stops_before_another_size() -> None:
    memory = Memory()
    memory.submit(b"12345678")
    memory.submit(b"1234567")

    strided = memory.reader.drain_strided(Layout(8), 100)

    assert strided == (b"12345678", 1, 0, True)


def test_a_strided_drain_stops_before_a_busy_record_and_at_its_limit() -> None:
    memory = Memory()
    for _ in range(3):
        memory.submit(b"12345678")
    memory.reserve(b"busy now")

    first = memory.reader.drain_strided(Layout(8), 2)
    second = memory.reader.drain_strided(Layout(8), 2)

    assert first == (b"12345678" * 2, 2, 0, True)
    assert second == (b"12345678", 1, 0, False)


@pytest.mark.parametrize("size", [1, 5, 8, 12, 63, 64, 100, 1000])
def test_records_of_any_size_are_packed_without_gaps(size: int) -> None:
    memory = Memory(1 << 14, start=(1 << 14) - 24)
    payloads = [bytes((number + index) & 0xFF for index in range(size)) for number in range(10)]
    for payload in payloads:
        memory.submit(payload)

    strided = memory.reader.drain_strided(Layout(size), 10)

    assert strided.data == b"".join(payloads)


@pytest.mark.parametrize(("tag_size", "code"), [(1, "=B"), (2, "=H"), (4, "=I"), (8, "=Q")])
def test_tags_of_each_width_are_compared_whole(tag_size: int, code: str) -> None:
    memory = Memory()
    tag = (1 << (8 * tag_size)) - 2
    payload = b"....." + struct.pack(code, tag) + b"..."
    memory.submit(payload)
    memory.submit(b"....." + struct.pack(code, tag ^ (1 << (8 * tag_size - 1))) + b"...")

    strided = memory.reader.drain_strided(Layout(len(payload), 5, tag_size, (tag,)), 10)

    assert (strided.data, strided.more) == (payload, True)


def test_a_closed_reader_refuses() -> None:
    memory = Memory()
    memory.reader.close()
    memory.reader.close()

    assert memory.reader.closed
    for use in (memory.reader.drain, memory.reader.pending_bytes, lambda: memory.reader.spin(1)):
        with pytest.raises(ClosedError, match=r"ring events: it is closed"):
            use()


def test_spinning_sees_a_finished_record_and_not_a_busy_one() -> None:
    memory = Memory()
    empty = memory.reader.spin(1)
    busy = memory.reserve(b"12345678")
    unfinished = memory.reader.spin(1)
    memory.commit(busy, 8)

    assert (empty, unfinished, memory.reader.spin(1)) == (False, False, True)


@settings(max_examples=200, deadline=None)
@given(
    start=st.integers(0, 1 << 20).map(lambda words: words * 8),
    records=st.lists(st.tuples(st.binary(max_size=90), st.sampled_from([0, DISCARD])), max_size=60),
    limit_bytes=st.integers(16, 600),
    limit_records=st.integers(1, 9),
)
def test_whatever_the_limits_every_record_comes_once_and_in_order(
    start: int, records: list[tuple[bytes, int]], limit_bytes: int, limit_records: int
) -> None:
    memory = Memory(8192, start=start)
    for payload, flags in records:
        memory.reserve(payload, flags)
    frames, taken, discarded = b"", 0, 0

    while True:
        drained = memory.reader.drain(limit_bytes, limit_records)
        frames += drained.frames
        taken += drained.records
        discarded += drained.discarded
        assert drained.records <= limit_records
        if not drained.more:
            break

    kept = [payload for payload, flags in records if not flags]
    assert frames == b"".join(map(frame, kept))
    assert (taken, discarded) == (len(kept), len(records) - len(kept))
    assert memory.consumer == memory.producer


def test_a_drain_within_a_drain_takes_nothing_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    memory.submit(b"outer123")
    drain, within = rings.drain_ring, []

    def interrupted(*given: Any) -> None:
        monkeypatch.setattr(rings, "drain_ring", drain)
        drain(*given)
        # A signal handler, before the outer one has looked at what it has drained.
        memory.submit(b"inner678")
        within.append(memory.reader.drain())
        memory.reader.close()

    monkeypatch.setattr(rings, "drain_ring", interrupted)
    outer = memory.reader.drain()

    assert (outer.frames, outer.records) == (frame(b"outer123"), 1)
    assert [(each.frames, each.records) for each in within] == [(frame(b"inner678"), 1)]
    assert memory.reader.closed
