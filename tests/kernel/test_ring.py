"""The kernel's ring and perf buffers: every record once, in order, and every loss counted."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.map_object import memory_for_maps
from harness.ring_program import DISCARDED, MALFORMED, OTHER, SAMPLE, UNKNOWN, RingProgram
from harness.tiers import Require
from kerneltrace_core.errors import ClosedError, RingError
from kerneltrace_core.ring.frames import split
from kerneltrace_core.ring.perf import PerfReader
from kerneltrace_core.ring.protocol import Layout
from kerneltrace_core.ring.reader import RingReader

pytestmark = pytest.mark.kernel

RING_BYTES = 64 * 1024
STEP = 72  # of a sample with its header
TYPED = Layout(64, 0, 2, (1,))


@pytest.fixture
def program(require: Require) -> Iterator[RingProgram]:
    require("ring_buffer")
    require("memory for maps", probe=memory_for_maps)
    program = RingProgram(RING_BYTES)
    yield program
    program.close()


@pytest.fixture
def reader(program: RingProgram) -> Iterator[RingReader]:
    reader = RingReader(program.ring_fd, "events")
    yield reader
    reader.close()


def numbers(frames: bytes) -> list[int]:
    return [struct.unpack_from("=Q", payload, 24)[0] for payload, _ in split(frames)]


@pytest.mark.unprivileged
def test_every_record_comes_once_and_in_order_over_many_turns(
    program: RingProgram, reader: RingReader
) -> None:
    found: list[int] = []
    for count in (1, 2, 500, 900, 17, 800, 333, 910, 640, 77):
        program.produce(count)
        drained = reader.drain()
        assert drained.records == count
        found += numbers(drained.frames)

    assert found == list(range(len(found)))
    assert len(found) * STEP > 4 * reader.size_bytes
    assert reader.drain() == (b"", 0, 0, 0, False)


def test_given_up_records_are_counted_and_left_out(
    program: RingProgram, reader: RingReader
) -> None:
    program.produce(160, SAMPLE, DISCARDED)

    drained = reader.drain()

    assert (drained.records, drained.discarded) == (80, 80)
    assert numbers(drained.frames) == list(range(0, 160, 2))


def test_a_full_ring_refuses_exactly_what_is_missing(
    program: RingProgram, reader: RingReader
) -> None:
    program.produce(2000)

    drained = reader.drain()

    assert drained.records == program.sent[SAMPLE] == RING_BYTES // STEP
    assert program.lost[SAMPLE] == 2000 - drained.records
    program.produce(3)
    assert reader.drain().records == 3


def test_what_waits_is_told_in_bytes(program: RingProgram, reader: RingReader) -> None:
    program.produce(10)

    assert reader.pending_bytes() == 10 * STEP
    assert reader.size_bytes == RING_BYTES


def test_the_direct_way_takes_the_same_records_as_the_ordinary_one(
    program: RingProgram, reader: RingReader
) -> None:
    kinds = (SAMPLE, SAMPLE, DISCARDED, SAMPLE, OTHER, UNKNOWN, SAMPLE, MALFORMED)
    program.produce(800, *kinds)
    ordinary = reader.drain()
    program.produce(800, *kinds)
    direct, other, discarded = b"", 0, ordinary.discarded
    while reader.pending_bytes():
        strided = reader.drain_strided(TYPED, 1000)
        direct += strided.data
        discarded += strided.discarded
        if strided.more:
            other += reader.drain(limit_records=1).records

    packed = b"".join(p for p, _ in split(ordinary.frames) if len(p) == 64 and p[0] == 1)
    assert [(kind, number - 800) for kind, number in rows(direct)] == rows(packed)
    assert (len(direct) // 64, other) == (400, 300)
    assert (ordinary.records, ordinary.discarded, discarded) == (700, 100, 200)


def rows(packed: bytes) -> list[tuple[int, int]]:
    """Return type and number of each packed sample."""
    return [(row[0], row[5]) for row in struct.iter_unpack("=HHIQQQ4Q", packed)]


def test_epoll_finds_the_ring_readable_until_it_is_drained(
    program: RingProgram, reader: RingReader
) -> None:
    with select.epoll() as poll:
        poll.register(reader.fd, select.EPOLLIN)
        before = poll.poll(0)
        program.produce(1)
        during = poll.poll(10)
        reader.drain()
        after = poll.poll(0)

    assert (before, during, after) == ([], [(reader.fd, select.EPOLLIN)], [])


def test_the_interpreter_goes_on_during_a_drain_and_a_spin(
    program: RingProgram, reader: RingReader
) -> None:
    turns, stop = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = turns
        reader.spin(200_000)
        during = turns - before
    finally:
        stop.set()
        thread.join()

    # One holder of the lock for 200 ms would leave the other some turns only.
    assert during > 1000


def test_a_map_that_is_no_ring_is_refused(program: RingProgram) -> None:
    with pytest.raises(RingError, match=r"open ring counts: the map is no ring buffer"):
        RingReader(program.object.map_fd(".bss"), "counts")
    with pytest.raises(RingError, match=r"open perf buffer events: the map is no perf event array"):
        PerfReader(program.ring_fd, "events")
    with pytest.raises(RingError, match=r"open ring gone: .*\(EBADFD\)"):
        RingReader(-1, "gone")


def test_closing_gives_the_mapping_back(program: RingProgram) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("bpf-map")

    before = mapped()
    reader = RingReader(program.ring_fd, "events")
    during = mapped()
    reader.close()
    reader.close()

    assert (during - before, mapped() - before) == (2, 0)
    with pytest.raises(ClosedError, match=r"drain ring events: it is closed"):
        reader.drain()


def mapped_maps() -> int:
    return Path("/proc/self/maps").read_text().count("bpf-map")


def test_a_forked_child_cannot_take_its_parents_records(
    program: RingProgram, reader: RingReader
) -> None:
    program.produce(5)
    mapped = mapped_maps()
    reads, writes = os.pipe()

    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            unmapped = mapped - mapped_maps()
            try:
                reader.drain()
            except ClosedError as error:
                os.write(writes, f"{unmapped} {error}".encode())
            reader.close()
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writes)
    told = os.read(reads, 1000).decode()
    os.close(reads)

    assert told.startswith(
        f"2 drain ring events: it belongs to process {os.getpid()}, and this one"
    )
    assert numbers(reader.drain().frames) == list(range(5))


# ---- perf buffers -----------------------------------------------------------------


@pytest.fixture
def perf(program: RingProgram, require: Require) -> Iterator[PerfReader]:
    require("perf_events")
    reader = PerfReader(program.perf_fd, "perf_events", pages=4)
    yield reader
    reader.close()


@pytest.fixture
def one_cpu() -> Iterator[int]:
    """Keep this thread on one CPU, and return that."""
    before = os.sched_getaffinity(0)
    cpu = max(before)
    os.sched_setaffinity(0, {cpu})
    yield cpu
    os.sched_setaffinity(0, before)


@pytest.mark.unprivileged
def test_samples_come_with_their_cpu_and_the_kernels_padding(
    program: RingProgram, perf: PerfReader, one_cpu: int
) -> None:
    program.produce(20, program="produce_perf")

    records = list(split(perf.drain().frames))

    assert [struct.unpack_from("=Q", payload, 24)[0] for payload, _ in records] == list(range(20))
    assert {(len(payload), origin) for payload, origin in records} == {(68, one_cpu)}
    assert {struct.unpack_from("=HHI", payload) for payload, _ in records} == {(1, 64, one_cpu)}


def test_samples_of_each_cpu_are_taken(program: RingProgram, perf: PerfReader) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    try:
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            program.produce(10 + cpu, program="produce_perf")
    finally:
        os.sched_setaffinity(0, set(cpus))

    origins = [origin for _, origin in split(perf.drain().frames)]

    assert {cpu: origins.count(cpu) for cpu in cpus} == {cpu: 10 + cpu for cpu in cpus}


def test_lost_samples_are_counted_by_cpu(
    program: RingProgram, perf: PerfReader, one_cpu: int
) -> None:
    taken = lost = 0
    program.produce(1000, program="produce_perf")
    while True:
        drained = perf.drain(limit_records=7)
        taken += drained.records
        lost += drained.lost
        if not drained.more:
            break
    # The kernel reports a loss with the next sample that it has space for.
    program.produce(1, program="produce_perf")
    drained = perf.drain()
    taken, lost = taken + drained.records, lost + drained.lost

    assert lost > 0
    assert taken + lost == 1001
    assert perf.lost_by_cpu == {
        cpu: lost if cpu == one_cpu else 0 for cpu in range(len(perf.lost_by_cpu))
    }


def test_samples_survive_many_turns_of_the_buffer(
    program: RingProgram, perf: PerfReader, one_cpu: int
) -> None:
    found: list[int] = []
    for count in (1, 100, 150, 7, 180, 99, 190, 120, 188, 64):
        program.produce(count, program="produce_perf")
        found += numbers(perf.drain().frames)

    assert found == list(range(1099))


def test_a_perf_buffer_wakes_who_waits_for_it(program: RingProgram, perf: PerfReader) -> None:
    with select.epoll() as poll:
        poll.register(perf.fd, select.EPOLLIN | select.EPOLLET)
        before = poll.poll(0)
        thread = threading.Thread(
            target=lambda: (time.sleep(0.02), program.produce(1, program="produce_perf"))
        )
        thread.start()
        during = poll.poll(10)
        thread.join()

    assert (before, during) == ([], [(perf.fd, select.EPOLLIN)])
    assert perf.pending_bytes() > 0
    assert perf.drain().records == 1


def test_a_forked_child_cannot_take_its_parents_samples(
    program: RingProgram, perf: PerfReader
) -> None:
    program.produce(5, program="produce_perf")
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            try:
                perf.drain()
            except ClosedError:
                perf.close()
                status = 0
        os._exit(status)

    assert os.waitpid(child, 0)[1] == 0
    assert perf.drain().records == 5
