"""The drain of a perf buffer over plain memory."""

from __future__ import annotations

import os
import select
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneltrace_core._native import rings
from kerneltrace_core.errors import ClosedError, RingError
from kerneltrace_core.ring.frames import make_frame, split
from kerneltrace_core.ring.perf import PerfReader

pytestmark = pytest.mark.unit

SAMPLE, LOST, THROTTLE = 9, 2, 5  # enum perf_event_type


class Cpu:
    """One CPU's part as the kernel lays it out: positions, and the data once."""

    def __init__(self, size: int = 4096, start: int = 0) -> None:
        self.size = size
        self.positions = bytearray(struct.pack("=QQ", start, start))  # head, tail
        self.data = bytearray(b"\xee" * size)

    @property
    def head(self) -> int:
        return int(struct.unpack_from("=Q", self.positions, 0)[0])

    @property
    def tail(self) -> int:
        return int(struct.unpack_from("=Q", self.positions, 8)[0])

    def put(self, kind: int, body: bytes, size: int | None = None) -> None:
        record = struct.pack("=IHH", kind, 0, 8 + len(body) if size is None else size) + body
        head = self.head
        assert head + len(record) - self.tail <= self.size, "the test's buffer is full"
        for index, byte in enumerate(record):
            self.data[(head + index) % self.size] = byte
        struct.pack_into("=Q", self.positions, 0, head + len(record))

    def sample(self, payload: bytes) -> bytes:
        """Put a sample as the kernel does; returns it with its padding."""
        padded = payload + bytes(-(len(payload) + 4) % 8)
        self.put(SAMPLE, struct.pack("=I", len(padded)) + padded)
        return padded

    def lost(self, count: int) -> None:
        self.put(LOST, struct.pack("=QQ", 1, count))


def reader_of(*cpus: Cpu) -> PerfReader:
    return PerfReader.over_memory(
        {number: (cpu.positions, cpu.data) for number, cpu in enumerate(cpus)}, "events"
    )


def test_samples_become_frames_with_the_cpu_and_their_space_is_given_back() -> None:
    cpus = Cpu(), Cpu()
    padded = cpus[1].sample(b"12345678"), cpus[1].sample(b"abcd"), cpus[1].sample(b"")

    drained = reader_of(*cpus).drain()

    assert drained == (b"".join(make_frame(each, 1) for each in padded), 3, 0, 0, False)
    assert [len(each) for each in padded] == [12, 4, 4]
    assert cpus[1].tail == cpus[1].head


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll here")
def test_without_sys_the_processors_are_those_that_python_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[int] = []

    def missing(path: Path) -> str:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    def open_perf(_: int, cpu: int, *__: object, **___: object) -> int:
        opened.append(cpu)
        return cpu

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(rings, "map_shape", lambda *_: (rings.PERF_EVENT_ARRAY, 8))
    monkeypatch.setattr(rings, "open_perf", open_perf)
    monkeypatch.setattr(rings, "close_perf", lambda *_: None)
    reading, writing = os.pipe()
    descriptors = [reading, writing, os.dup(reading)]
    monkeypatch.setattr(rings, "perf_fd", lambda cpu: descriptors[cpu])

    reader = PerfReader(0, "events")
    reader.close()
    for each in descriptors:
        os.close(each)

    assert opened == [0, 1, 2]
    assert reader.lost_by_cpu == {0: 0, 1: 0, 2: 0}


def test_samples_that_say_their_size_lose_the_padding() -> None:
    cpu = Cpu()
    said = [struct.pack("=HHI", 7, length, 0) + b"x" * (length - 8) for length in range(24, 50)]
    for payload in said:
        cpu.sample(payload)
    reader = PerfReader.over_memory({0: (cpu.positions, cpu.data)}, "events", sized=True)

    drained = reader.drain()

    assert drained.frames == b"".join(make_frame(payload, 0) for payload in said)
    assert drained.records == len(said)
    assert cpu.tail == cpu.head


@pytest.mark.parametrize("said", [0, 20, 23, 36, 45, 65535])
def test_a_size_that_cannot_be_leaves_a_sample_as_it_is(said: int) -> None:
    cpu = Cpu()
    padded = [cpu.sample(struct.pack("=HH", 7, said) + bytes(size)) for size in (0, 20, 40)]
    reader = PerfReader.over_memory({0: (cpu.positions, cpu.data)}, "events", sized=True)

    assert reader.drain().frames == b"".join(make_frame(each, 0) for each in padded)


def test_a_sample_with_another_cpu_where_the_header_has_this_one_has_no_header() -> None:
    cpu = Cpu()
    padded = cpu.sample(struct.pack("=HHI", 7, 40, 1) + bytes(32))
    reader = PerfReader.over_memory({0: (cpu.positions, cpu.data)}, "events", sized=True)

    assert reader.drain().frames == make_frame(padded, 0)


def test_lost_samples_are_added_up_by_cpu() -> None:
    cpus = Cpu(), Cpu()
    cpus[0].lost(5)
    cpus[0].sample(b"abcd")
    cpus[0].lost(2)
    cpus[1].lost(100)
    reader = reader_of(*cpus)

    drained = reader.drain()

    assert (drained.records, drained.lost) == (1, 107)
    assert reader.lost_by_cpu == {0: 7, 1: 100}


def test_other_kinds_of_records_are_skipped_and_counted() -> None:
    cpu = Cpu()
    cpu.put(THROTTLE, bytes(24))
    padded = cpu.sample(b"abcd")

    assert reader_of(cpu).drain() == (make_frame(padded, 0), 1, 1, 0, False)


def test_a_sample_across_the_end_of_the_buffer_is_whole() -> None:
    for start in range(4096 - 64, 4096, 8):
        cpu = Cpu(4096, start)
        padded = cpu.sample(bytes(range(100)))

        assert reader_of(cpu).drain().frames == make_frame(padded, 0)


def test_the_limits_leave_the_rest() -> None:
    cpus = Cpu(), Cpu()
    for number in range(5):
        for cpu in cpus:
            cpu.sample(struct.pack("=I", number))
    reader = reader_of(*cpus)

    found = []
    while True:
        drained = reader.drain(limit_records=3)
        assert drained.records <= 3
        found += [(cpu, struct.unpack("=I", payload)[0]) for payload, cpu in split(drained.frames)]
        if not drained.more:
            break

    assert sorted(found) == [(cpu, number) for cpu in (0, 1) for number in range(5)]


def test_the_largest_samples_are_taken_one_chunk_at_a_time() -> None:
    cpu = Cpu(1 << 20)
    payloads = [cpu.sample(bytes([number]) * 65_500) for number in range(10)]
    reader = reader_of(cpu)

    found = []
    while drained := reader.drain(limit_bytes=100):
        found += [payload for payload, _ in split(drained.frames)]
        if not drained.more:
            break

    assert found == payloads


@pytest.mark.parametrize(
    ("kind", "body", "size"),
    [
        (SAMPLE, bytes(8), 0),
        (SAMPLE, bytes(8), 7),
        (SAMPLE, bytes(8), 4000),
        (SAMPLE, b"", None),
        (SAMPLE, struct.pack("=I", 5) + bytes(4), None),
        (SAMPLE, struct.pack("=I", 0xFFFFFFFF) + bytes(4), None),
        (LOST, bytes(8), None),
    ],
)
def test_what_no_kernel_writes_is_an_error(kind: int, body: bytes, size: int | None) -> None:
    cpu = Cpu()
    cpu.put(kind, body, size)

    with pytest.raises(RingError, match=r"drain perf buffer events: it holds what no kernel"):
        reader_of(cpu).drain()


def test_a_closed_reader_refuses() -> None:
    reader = reader_of(Cpu())
    reader.close()
    reader.close()

    assert reader.closed
    for use in (reader.drain, reader.pending_bytes):
        with pytest.raises(ClosedError, match=r"perf buffer events: it is closed"):
            use()


@settings(max_examples=200, deadline=None)
@given(
    start=st.integers(0, 1 << 20).map(lambda words: words * 8),
    payloads=st.lists(st.binary(max_size=90), max_size=30),
    limit_records=st.integers(1, 9),
)
def test_whatever_the_limits_every_sample_comes_once_and_in_order(
    start: int, payloads: list[bytes], limit_records: int
) -> None:
    cpu = Cpu(4096, start)
    padded = [cpu.sample(payload) for payload in payloads]
    reader = reader_of(cpu)
    frames = b""
    while (drained := reader.drain(limit_records=limit_records)).records:
        frames += drained.frames

    assert frames == b"".join(make_frame(each, 0) for each in padded)
    assert reader.pending_bytes() == 0
