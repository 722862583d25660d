"""Under a flood that must lose, no record is missing from the counts."""

from __future__ import annotations

import itertools
import logging
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from harness.objects import compile_object
from harness.tiers import Require
from kerneltrace_core import BtfTracepoint, Filter, Session
from kerneltrace_core._native import lib
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.btf.layout import ObjectLayout
from kerneltrace_core.errors import PrivilegeError
from kerneltrace_core.maps.maps import Maps
from kerneltrace_core.ring.frames import split
from kerneltrace_core.ring.perf import PerfReader
from kerneltrace_core.ring.reader import RingReader
from kerneltrace_core.session.links import Link
from kerneltrace_core.session.loss import ProgramCounters, read_counters, undrained
from kerneltrace_core.session.probes import PerfEvent
from kerneltrace_core.session.variables import MappedSections, Variables

pytestmark = pytest.mark.kernel

AT_ONCE = 256
# In 4096 bytes there is room for 56 records of 64 bytes with their headers.
ROOM = 56
FLOOD = 200_000
PATIENCE_SECONDS = 60
# Of rings.bpf.c: a nibble for each record, 0 a sample, 3 one that is too short.
ALL_SHORT, EVERY_SECOND_SHORT = 0x3333333333333333, 0x3030303030303030


def run(opened: BpfObject, program: str, count: int, argument: int = 0) -> None:
    """Let a program of tests/probes send so many records."""
    fd = opened.program_fd(program)
    while count > 0:
        now = min(count, AT_ONCE)
        context = bytearray(struct.pack("=12Q", now, argument, *[0] * 10))
        lib.run_program(fd, context, f"run {program}")
        count -= now


def run_in(session: Session, program: str, count: int, argument: int = 0) -> None:
    """Do so in a session, on one CPU: of its losses a perf buffer tells with its next record."""
    assert session._parts is not None
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        run(session._parts.object, program, count, argument)
    finally:
        os.sched_setaffinity(0, before)


class Flood:
    """tests/probes/loss.bpf.c, loaded; ``interrupt`` is attached only inside of its own block."""

    def __init__(self, undo: ExitStack, *programs: str) -> None:
        data = compile_object("loss").read_bytes()
        self.layout = ObjectLayout.from_elf(data)
        self.object = undo.enter_context(BpfObject(data, "loss"))
        self.object.select(set(programs))
        self.object.load()
        self.maps = Maps(self.object.map_fd, self.layout.maps)
        undo.callback(self.maps.close)
        variables = Variables(self.layout.variables, MappedSections(self.object))
        undo.callback(variables.close)
        self.variables = variables

    def run(self, program: str, count: int, argument: int = 0) -> None:
        """Send so many records."""
        run(self.object, program, count, argument)

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Run ``interrupt`` after each 20 us of this process, wherever it is."""
        spec = PerfEvent(count=20_000, event="task-clock", pid=os.getpid(), program="interrupt")
        link = Link(self.object, "interrupt", spec)
        try:
            link.attach()
            yield
        finally:
            link.close()

    def counters(self, program: str) -> ProgramCounters:
        return read_counters(self.layout, self.maps)[program]


def loaded(undo: ExitStack, *programs: str) -> Flood:
    """Load them. Before Linux 5.11 the memory of maps that are gone is given back late."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return Flood(undo, *programs)
        except PrivilegeError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


@pytest.fixture
def flood(require: Require) -> Iterator[Flood]:
    require("ring_buffer")
    with ExitStack() as undo:
        yield loaded(undo, "flood", "flood_perf", "flood_lengths")


@pytest.fixture
def ring(flood: Flood) -> Iterator[RingReader]:
    reader = RingReader(flood.object.map_fd("events"), "events")
    yield reader
    reader.close()


def test_programs_that_have_not_run_have_counted_nothing(flood: Flood) -> None:
    assert read_counters(flood.layout, flood.maps) == {
        program: ProgramCounters() for program in ("flood", "flood_perf", "flood_lengths")
    }


def test_what_fits_is_submitted_and_the_rest_is_lost(flood: Flood, ring: RingReader) -> None:
    flood.run("flood", 200)

    assert flood.counters("flood") == ProgramCounters(200, ROOM, 200 - ROOM, 0, 0)
    assert ring.drain().records == ROOM


@pytest.mark.unprivileged
def test_a_flood_of_which_most_is_lost_is_counted_to_the_last_record(
    flood: Flood, ring: RingReader
) -> None:
    drained = 0
    for _ in range(100):
        flood.run("flood", FLOOD // 100)
        drained += ring.drain().records

    counted = flood.counters("flood")
    assert counted.seen == FLOOD
    assert counted.submitted + counted.lost == FLOOD
    assert counted.submitted == drained == 100 * ROOM
    assert counted.in_flight == counted.discarded == 0


def test_records_that_the_program_gives_up_are_counted_apart(
    flood: Flood, ring: RingReader
) -> None:
    flood.run("flood", 50, 5)

    drained = ring.drain()
    assert flood.counters("flood") == ProgramCounters(50, 40, 0, 10, 0)
    assert (drained.records, drained.discarded) == (40, 10)


def test_records_carry_their_type_size_cpu_and_time(flood: Flood, ring: RingReader) -> None:
    flood.run("flood", 3)

    payloads = [payload for payload, _ in split(ring.drain().frames)]
    headers = [struct.unpack_from("=HHIQQ", payload) for payload in payloads]
    assert [(kind, size, request) for kind, size, _, _, request in headers] == [(7, 64, 0)] * 3
    assert all(cpu < lib.possible_cpus() for _, _, cpu, _, _ in headers)
    times = [time for *_, time, _ in headers]
    assert times == sorted(times)
    assert times[0] > 0
    assert [struct.unpack_from("=5Q", payload, 24) for payload in payloads] == [
        (number, 0, 1, 2, 3) for number in range(3)
    ]


def test_records_of_varying_length_say_theirs(flood: Flood, ring: RingReader) -> None:
    flood.run("flood_lengths", 18)

    payloads = [payload for payload, _ in split(ring.drain().frames)]
    lengths = [24 + 8 * (1 + number % 16) for number in range(18)]
    assert [len(payload) for payload in payloads] == lengths
    assert [struct.unpack_from("=HH", payload) for payload in payloads] == [
        (300, length) for length in lengths
    ]
    assert flood.counters("flood_lengths") == ProgramCounters(18, 18, 0, 0, 0)


def test_records_of_varying_length_that_do_not_fit_are_lost(flood: Flood, ring: RingReader) -> None:
    flood.run("flood_lengths", 2000)

    counted = flood.counters("flood_lengths")
    assert counted.seen == counted.submitted + counted.lost == 2000
    assert counted.lost > 0
    assert ring.drain().records == counted.submitted


def test_a_perf_buffer_and_the_program_agree_on_what_is_lost(flood: Flood) -> None:
    reader = PerfReader(flood.object.map_fd("perf_events"), "perf_events", pages=1)
    try:
        flood.run("flood_perf", 5000)
        drained = lost = 0
        while True:
            part = reader.drain()
            drained += part.records
            lost += part.lost
            if not part.more:
                break
        # The buffer says what it lost with the next record that it has room for.
        flood.run("flood_perf", 2)
        rest = reader.drain()
    finally:
        reader.close()

    counted = flood.counters("flood_perf")
    assert counted.seen == counted.submitted + counted.lost == 5002
    assert counted.lost > 0
    assert drained + rest.records == counted.submitted
    assert lost + rest.lost == counted.lost


def test_what_a_perf_buffer_reports_adds_to_what_programs_lost_in_a_ring_buffer(
    require: Require,
) -> None:
    require("ring_buffer", "perf_events")
    with Session(compile_object("loss"), programs=["flood", "flood_perf"]) as session:
        run_in(session, "flood", 200)
        with session.raw(ring="perf_events", timeout=0) as records:
            run_in(session, "flood_perf", 5000)
            drained = sum(1 for _ in records)
            run_in(session, "flood_perf", 2)
            drained += sum(1 for _ in records)
        both = session.stats()
        # From now on as a program without KT_PROBE: only the buffer tells what it lost.
        session.maps["kt_counters"][session.layout.probes["flood_perf"]] = [
            {"seen": 0, "submitted": 0, "lost": 0, "discarded": 0, "filtered": 0}
        ] * lib.possible_cpus()
        alone = session.stats()

    lost = both.rings["perf_events"].lost
    assert lost == both.programs["flood_perf"].lost == 5002 - drained > 0
    assert both.programs["flood"].lost == 200 - ROOM
    assert alone.programs["flood_perf"] == ProgramCounters()
    assert both.lost == alone.lost == 200 - ROOM + lost


def test_what_interrupts_a_program_on_its_cpu_makes_it_lose_no_count(require: Require) -> None:
    require("ring_buffer")

    with ExitStack() as undo:
        flood = Flood(undo, "flood", "interrupt")
        with flood.interrupted():
            flood.run("flood", FLOOD)
        interrupts = flood.variables["interrupts"]
        counted = flood.counters("flood")

    assert interrupts > 0
    assert counted.seen == FLOOD + interrupts
    assert counted.submitted == ROOM
    assert counted.lost == FLOOD + interrupts - ROOM


def in_rings(session: Session) -> int:
    stats = session.stats()
    return undrained(stats.programs, stats.rings)


@pytest.mark.parametrize("pump", ["inline", "thread"])
def test_what_a_session_saw_is_what_it_delivered_and_every_loss(
    require: Require, pump: str
) -> None:
    require("ring_buffer", "tracepoint:sys_exit")
    probe = BtfTracepoint("sys_exit", program="on_flood")
    whom = Filter(current_process=True)

    delivered = 0
    with Session(
        compile_object("session"),
        [probe],
        programs=[],
        filter=whom,
        pump=pump,
        queue_size=100,
    ) as session:
        with session.events("flood_event", ring="flood", timeout=0) as events:
            for _ in range(50):
                for _ in range(100):
                    os.getppid()
                delivered += sum(1 for _ in itertools.islice(events, 10))
            (link,) = session.links
            link.detach()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while pump == "thread" and in_rings(session) and time.monotonic() < deadline:
                time.sleep(0.01)
        # What the stream had taken and not yet given is known once it is closed.
        stats = session.stats()
        left = in_rings(session)

    seen, ring = stats.programs["on_flood"], stats.rings["flood"]
    assert seen.seen >= 50 * 100 * 64
    assert seen.in_flight == seen.discarded == 0
    assert ring.delivered == delivered
    unread = ring.waiting + ring.abandoned + ring.unclaimed + ring.unknown + ring.malformed
    assert seen.seen == delivered + seen.lost + ring.dropped + unread + left
    if pump == "inline":
        # Nobody drains for a reader whose queue is full: the ring has room for 910.
        assert seen.lost > 0
        assert ring.dropped == 0
        assert left > 0
    else:
        assert ring.dropped > 0
        assert left == 0


@pytest.mark.parametrize("way", ["events", "batches"])
def test_records_of_another_size_than_their_types_are_counted_and_never_decoded(
    require: Require, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    require("ring_buffer", "perf_events")

    def numbers(stream: Any) -> list[int]:
        if way == "events":
            return [event.number for event in stream]
        return [number for batch in stream for number in batch["number"]]

    # An object without kt_event.h: only the size tells, 64 bytes, and 32 of the short ones.
    with (
        caplog.at_level(logging.WARNING, "kerneltrace"),
        Session(compile_object("rings"), name="mine") as session,
        getattr(session, way)("sample", ring="events", timeout=0) as stream,
    ):
        run_in(session, "produce", 16, ALL_SHORT)
        none = numbers(stream)
        first = session.stats().rings["events"]
        run_in(session, "produce", 160, EVERY_SECOND_SHORT)
        some = numbers(stream)
        sent = list(session.variables["sent"])
        counts = session.stats().rings["events"]
        mine = stream.counts()

    assert (none, first.records, first.malformed) == ([], 16, 16)
    assert some == list(range(16, 176, 2))
    assert sent == [80, 0, 0, 96, 0]
    assert (counts.records, counts.delivered, counts.malformed) == (176, 80, 96)
    assert (counts.unknown, counts.unclaimed, counts.dropped, counts.waiting) == (0, 0, 0, 0)
    assert (mine.records, mine.delivered, mine.malformed, mine.other) == (176, 80, 96, 0)
    assert caplog.messages == [
        "ring events of session mine has malformed records, whose size is not that of their type: "
        "they are counted and left out"
    ]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "block"])
@pytest.mark.parametrize("pump", ["inline", "thread"])
def test_threads_and_readers_under_every_policy_account_for_every_record(
    require: Require, pump: str, overflow: str
) -> None:
    require("ring_buffer", "tracepoint:sys_exit")
    probes = [
        BtfTracepoint("sys_enter", program="on_call"),
        BtfTracepoint("sys_exit", program="on_flood"),
    ]

    def work() -> None:
        for _ in range(50):
            os.getppid()

    with Session(
        compile_object("session"),
        programs=["on_call", "on_flood"],
        filter=Filter(current_process=True),
        pump=pump,
        overflow=overflow,
        queue_size=50,
    ) as session:
        # Of a type that the object has, and that never comes on this ring.
        never = session.events("call_event", ring="flood", timeout=0)
        readers = [session.events("flood_event", ring="flood", timeout=0.05) for _ in range(2)]
        # Only now: what is drained before the second one came has one reader.
        links = [session.attach(probe) for probe in probes]
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        given = sum(1 for _ in itertools.islice(readers[0], 500))
        for thread in threads:
            thread.join()
        for link in links:
            link.detach()
        deadline = time.monotonic() + PATIENCE_SECONDS
        # The calls stay in their ring: nobody reads them.
        while in_rings(session) > 100 and time.monotonic() < deadline:
            given += sum(1 for reader in readers for _ in reader)
        given += sum(1 for reader in readers for _ in reader)
        none = list(never)
        for reader in (never, *readers):
            reader.close()
        stats = session.stats()

    flood, ring = stats.programs["on_flood"], stats.rings["flood"]
    assert stats.programs["on_call"].seen == stats.programs["on_call"].submitted == 100
    assert flood.seen == flood.submitted + flood.lost >= 100 * 64
    assert flood.discarded == flood.in_flight == 0
    assert flood.submitted == ring.records
    assert ring.unknown == ring.malformed == ring.unclaimed == ring.waiting == 0
    assert none == []
    assert ring.delivered == given
    assert ring.delivered + ring.dropped + ring.abandoned == 2 * ring.records
    assert flood.lost + ring.dropped > 0
    assert (ring.dropped == 0) is (overflow == "block")
