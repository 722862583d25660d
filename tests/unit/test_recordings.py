"""What comes in a block is captured or recorded whole, or somebody is told; replays end."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.bpf_source import compile_bpf
from kerneltrace_core import FormatError, KernelTraceError, OptionError, RingError
from kerneltrace_core.testing import FakeSession, capture_events, following, record, replay
from unit.test_session_fake import PAGE, program_of

PATIENCE_SECONDS = 20
DAMAGED = 400


@pytest.fixture(scope="session")
def data() -> bytes:
    return compile_bpf(program_of(PAGE))


@pytest.fixture
def small(data: bytes) -> Iterator[FakeSession]:
    """Return a session whose ring has room for 64 events."""
    with FakeSession(data, name="small", map_sizes={"events": 4096}) as opened:
        yield opened


@pytest.fixture
def recording(data: bytes, tmp_path: Path) -> Path:
    """Return the path of a recording of five events."""
    path = tmp_path / "five.recording"
    with FakeSession(data) as session, record(session, path):
        for number in range(5):
            session.emit("open_event", result=number)
    return path


def emit_all(session: FakeSession, count: int) -> None:
    """Send so many events, each as soon as there is space."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    for number in range(count):
        while True:
            try:
                session.emit("open_event", result=number)
                break
            except OptionError:
                assert time.monotonic() < deadline, "nobody reads"
                time.sleep(0.001)


@contextmanager
def flooded(session: FakeSession) -> Iterator[None]:
    """Send events all the time, one each millisecond."""
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.001):
            session.emit("open_event")

    sending = threading.Thread(target=send)
    sending.start()
    try:
        yield
    finally:
        stop.set()
        sending.join()


# ---- captures ---------------------------------------------------------------------------


def test_more_events_than_the_ring_has_space_for_are_captured(small: FakeSession) -> None:
    with capture_events(small, "open_event", settle=0.05) as events:
        emit_all(small, 1000)

    assert [event.result for event in events] == list(range(1000))


def test_a_capture_that_lost_events_is_an_error_and_no_list_with_holes(small: FakeSession) -> None:
    def act() -> None:
        with capture_events(small, "open_event", settle=0):
            small.emit("open_event")
            small.lose("on_exit", 7)

    with pytest.raises(RingError, match="capture open_event: 1 came, 7 were lost in the kernel"):
        act()


def test_a_capture_of_one_of_several_rings_tells_of_losses_too() -> None:
    second = """
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } more SEC(".maps");
"""
    with FakeSession(compile_bpf(program_of(PAGE) + second)) as session:
        session.lose("on_exit", 2)  # before: none of it is the capture's
        with capture_events(session, "open_event", ring="events", settle=0) as events:
            session.emit("open_event", ring="events")
        assert len(events) == 1

        def act() -> None:
            with capture_events(session, "open_event", ring="events", settle=0):
                session.emit("open_event", ring="events")
                session.lose("on_exit", 7)

        with pytest.raises(
            RingError, match=r"1 came, 7 were lost in the kernel \(all rings\) and 0 in a queue"
        ):
            act()


def test_what_a_captures_own_queue_dropped_is_lost_too(
    small: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following.Follower, "run", lambda _: None)  # it never gets a CPU

    def act() -> None:
        with (
            capture_events(small, "open_event", queue_size=10),
            small.events("open_event", timeout=0) as other,
        ):
            emit_all(small, 30)
            assert len(list(other)) == 30

    with pytest.raises(RingError, match="0 came, 0 were lost in the kernel and 20 in a queue"):
        act()


def test_the_exception_of_a_block_passes_and_the_list_is_filled(small: FakeSession) -> None:
    captured: list[Any] = []

    def act() -> None:
        nonlocal captured
        with capture_events(small, "open_event", settle=0) as captured:
            emit_all(small, 3)
            small.lose("on_exit")
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        act()

    assert [event.result for event in captured] == [0, 1, 2]


def test_a_capture_ends_though_events_never_pause(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LATEST_SECONDS", 0.1)
    with (
        FakeSession(data) as session,
        flooded(session),
        capture_events(session, "open_event", settle=5) as events,
    ):
        pass

    assert events


def test_a_capture_ends_with_its_session(small: FakeSession) -> None:
    with capture_events(small, "open_event", settle=0) as events:
        emit_all(small, 3)
        [reader] = [each for each in threading.enumerate() if each.name.endswith("small-follow")]
        small.close()
        reader.join(PATIENCE_SECONDS)
        assert not reader.is_alive()

    assert [event.result for event in events] == [0, 1, 2]


# ---- recordings -------------------------------------------------------------------------


def test_every_ring_of_a_session_is_recorded(tmp_path: Path) -> None:
    source = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } one SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } two SEC(".maps");
char LICENSE[] SEC("license") = "GPL";
"""
    path = tmp_path / "both.recording"
    with FakeSession(compile_bpf(source)) as session, record(session, path):
        for number in range(10):
            session.emit_bytes(bytes([number]), ring="one" if number % 3 else "two")

    with replay(path) as again:
        assert [record[0] for record in again.raw(ring="one")] == [1, 2, 4, 5, 7, 8]
        assert [record[0] for record in again.raw(ring="two")] == [0, 3, 6, 9]


def test_a_recording_ends_though_events_never_pause(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LATEST_SECONDS", 0.1)
    with (
        FakeSession(data) as session,
        flooded(session),
        record(session, tmp_path / "flood.recording"),
    ):
        time.sleep(0.05)

    with replay(tmp_path / "flood.recording") as again:
        assert list(again.events("open_event"))


def test_what_queues_dropped_from_a_recording_is_told(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(following.Follower, "run", lambda _: None)  # it never gets a CPU
    with (
        caplog.at_level(logging.WARNING, "kerneltrace"),
        FakeSession(data, queue_size=10) as session,
        record(session, tmp_path / "holes"),
        session.raw(timeout=0, queue_size=100) as other,
    ):
        emit_all(session, 30)
        assert len(list(other)) == 30

    assert f"record {tmp_path / 'holes'}: 20 records of ring events were dropped" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here is always full")
def test_a_disk_that_is_full_is_an_error(data: bytes) -> None:
    def act() -> None:
        with FakeSession(data) as session, record(session, "/dev/full"):
            for _ in range(1000):
                session.emit("open_event")

    with pytest.raises(OSError, match="No space left"):
        act()


# ---- replays ----------------------------------------------------------------------------


def test_every_way_to_read_a_replay_ends(recording: Path) -> None:
    found: list[int] = []

    def take(event: Any) -> None:
        found.append(event.result)

    async def loop() -> list[int]:
        async with replay(recording) as again:
            return [event.result async for event in again.events("open_event")]

    async def process() -> int:
        async with replay(recording) as again:
            return await again.aprocess(take, "open_event")

    with replay(recording) as again:
        assert again.process(take, "open_event") == 5
    assert found == [0, 1, 2, 3, 4]
    assert asyncio.run(process()) == 5
    assert asyncio.run(loop()) == [0, 1, 2, 3, 4]
    with replay(recording) as again:
        assert [record[16] for record in again.raw()] == [0] * 5
    with replay(recording) as again, capture_events(again, "open_event", settle=0) as events:
        pass
    assert [event.result for event in events] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("header", [[1], {"object": "x"}, {"object": "x", "rings": 3}, None])
def test_a_header_that_nobody_wrote_is_refused(recording: Path, header: Any) -> None:
    changed = json.dumps(header).encode()
    recording.write_bytes(
        b"kerneltrace recording 1\n" + len(changed).to_bytes(4, "little") + changed + b"\0" * 64
    )

    with pytest.raises(FormatError, match="it is damaged"):
        replay(recording)


def test_a_ring_that_the_object_has_not_is_refused(recording: Path) -> None:
    recording.write_bytes(recording.read_bytes().replace(b'["events"]', b'["evants"]'))

    with pytest.raises(FormatError, match="its object has no ring evants"):
        replay(recording).open()


def test_a_damaged_recording_is_refused_or_replayed(recording: Path) -> None:
    whole = recording.read_bytes()
    chance = random.Random(2026)
    ends = {"refused": 0, "replayed": 0}

    for _ in range(DAMAGED):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 4, 32))):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        recording.write_bytes(damaged)
        try:
            with replay(recording) as again:
                for _ in itertools.islice(again.raw(ring=again.rings[0]), 10):
                    pass
            ends["replayed"] += 1
        except KernelTraceError:
            ends["refused"] += 1

    assert min(ends.values()) > DAMAGED // 10
