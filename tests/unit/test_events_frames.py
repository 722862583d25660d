"""Which records are of one type, and records packed one after the other."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import struct
import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneltrace_core.errors import OptionError
from unit.events_engines import frame, frames_of, load_engine


@pytest.fixture(params=["c", "python"])
def engine(request: pytest.FixtureRequest) -> Any:
    return load_engine(request.param)


def tagged(tag: int, size: int = 16) -> bytes:
    return struct.pack("=H", tag) + bytes(range(size - 2))


def test_records_are_told_apart_by_tag_and_then_by_length(engine: Any) -> None:
    frames = frames_of(tagged(1), tagged(2), tagged(1, 15), tagged(1, 17), b"\x01", b"", tagged(1))
    exact = engine.Selector(16, True, 0, 2, (1,))
    longer = engine.Selector(16, False, 0, 2, (1,))

    assert exact.count(frames) == (2, 1, 4)
    assert longer.count(frames) == (3, 1, 3)


def test_a_selector_without_a_tag_goes_by_length_alone(engine: Any) -> None:
    frames = frames_of(bytes(8), bytes(16), bytes(16), bytes(17))

    assert engine.Selector(16, True).count(frames) == (2, 0, 2)
    assert engine.Selector(16, False).count(frames) == (3, 0, 1)
    assert engine.Selector(0, False).count(frames) == (4, 0, 0)


@pytest.mark.parametrize(("size", "code"), [(1, "=B"), (2, "=H"), (4, "=I"), (8, "=Q")])
def test_a_tag_is_of_one_to_eight_bytes_anywhere_in_the_record(
    engine: Any, size: int, code: str
) -> None:
    largest = (1 << 8 * size) - 1
    frames = frames_of(*(bytes(3) + struct.pack(code, tag) + bytes(5) for tag in (largest, 0, 77)))

    selector = engine.Selector(8 + size, True, 3, size, (77, largest))

    assert selector.tags == (77, largest)
    assert selector.count(frames) == (2, 1, 0)


def test_a_selector_of_no_tags_matches_nothing(engine: Any) -> None:
    assert engine.Selector(16, True, 0, 2, ()).count(frames_of(bytes(16))) == (0, 1, 0)


def test_padding_is_there_and_is_not_kept(engine: Any) -> None:
    selector = engine.Selector(10, True, padding=2)
    frames = frames_of(b"0123456789..", b"0123456789", b"abcdefghij..")

    assert selector.count(frames) == (2, 0, 1)
    assert engine.pack(frames, selector, 0, 9) == b"0123456789abcdefghij"


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, True),
        (1 << 32, True),
        (8, True, 0, 3, (1,)),
        (8, True, 7, 2, (1,)),
        (8, True, 0, 16, (1,)),
        (8, True, 0, 2, (65536,)),
        (8, True, 0, 2, (-1,)),
        (8, True, 0, 8, (1 << 64,)),
        (8, True, -1, 0, (), -1),
        (8, True, -1, 0, (), 1 << 32),
    ],
)
def test_a_selector_that_fits_no_record_is_refused(engine: Any, arguments: Any) -> None:
    with pytest.raises(OptionError, match="select records: "):
        engine.Selector(*arguments)


@pytest.mark.parametrize(
    "arguments", [(), ("8", True), (8, True, 0, 2, 7), (8, True, 0, 2, ("a",))]
)
def test_a_selector_of_other_types_is_refused(engine: Any, arguments: Any) -> None:
    with pytest.raises(TypeError):
        engine.Selector(*arguments)


def test_selectors_are_values(engine: Any) -> None:
    one = engine.Selector(16, True, 0, 2, (1, 2), 4)
    same = engine.Selector(size=16, exact=1, tag_offset=0, tag_size=2, tags=[1, 2], padding=4)
    other = engine.Selector(16, True, 0, 2, (2, 1), 4)

    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != 16
    assert pickle.loads(pickle.dumps(one)) == one
    assert copy.copy(one) == one
    assert repr(one) == (
        "Selector(size=16, exact=True, tag_offset=0, tag_size=2, tags=(1, 2), padding=4)"
    )
    with pytest.raises(AttributeError):
        one.size = 3
    with pytest.raises(AttributeError):
        del one.size


@pytest.mark.parametrize(
    "frames",
    [
        b"\0",
        frame(bytes(16))[:-1],
        frame(bytes(3))[:-1],
        struct.pack("=II", 0xFFFFFFFF, 0) + bytes(64),
        struct.pack("=II", 0xFFFFFFF9, 0) + bytes(64),
        frame(bytes(16)) + bytes(7),
    ],
)
def test_frames_that_end_within_a_record_are_refused(engine: Any, frames: bytes) -> None:
    selector = engine.Selector(16, True)

    with pytest.raises(OptionError, match="read frames: the record at byte"):
        selector.count(frames)
    with pytest.raises(OptionError, match="read frames: the record at byte"):
        engine.pack(frames, selector, 0, 99)


@pytest.mark.parametrize("frames", [None, "text", 7, bytearray(8), memoryview(b"")])
def test_frames_are_bytes(engine: Any, frames: Any) -> None:
    with pytest.raises(TypeError, match=r"read frames: .* is not bytes"):
        engine.Selector(16, True).count(frames)
    with pytest.raises(TypeError, match=r"read frames: .* is not bytes"):
        engine.pack(frames, engine.Selector(16, True), 0, 1)


def test_packing_skips_takes_and_stops(engine: Any) -> None:
    payloads = [struct.pack("=QQ", number, ~number & 0xFF) for number in range(5)]
    frames = frames_of(payloads[0], b"other", *payloads[1:])
    selector = engine.Selector(16, True)

    assert engine.pack(frames, selector, 0, 5) == b"".join(payloads)
    assert engine.pack(frames, selector, 1, 2) == payloads[1] + payloads[2]
    assert engine.pack(frames, selector, 4, 1 << 60) == payloads[4]
    assert engine.pack(frames, selector, 5, 1) == b""
    assert engine.pack(frames, selector, 0, 0) == b""
    assert engine.pack(b"", selector, 0, 3) == b""
    assert type(engine.pack(frames, selector, 0, 5)) is bytearray


def test_packing_looks_at_no_record_after_the_last_one_taken(engine: Any) -> None:
    frames = frames_of(bytes(16), bytes(16)) + b"rubbish"

    assert len(engine.pack(frames, engine.Selector(16, True), 0, 2)) == 32
    with pytest.raises(OptionError):
        engine.pack(frames, engine.Selector(16, True), 0, 3)


@pytest.mark.parametrize(("skip", "take"), [(-1, 1), (0, -1)])
def test_packing_refuses_negative_counts_and_records_of_any_length(
    engine: Any, skip: int, take: int
) -> None:
    with pytest.raises(OptionError, match="pack records: cannot skip"):
        engine.pack(b"", engine.Selector(16, True), skip, take)
    with pytest.raises(OptionError, match="pack records: their lengths differ"):
        engine.pack(b"", engine.Selector(16, False), 0, 1)


payloads = st.lists(st.binary(max_size=40), max_size=12)
rules = st.builds(
    lambda size, exact, tag, padding: (size, exact, *tag, padding),
    st.integers(0, 40),
    st.booleans(),
    st.one_of(
        st.just((-1, 0, ())),
        st.tuples(
            st.integers(0, 3), st.sampled_from([1, 2]), st.tuples(*[st.integers(0, 255)] * 3)
        ),
    ),
    st.integers(0, 3),
)


@given(payloads, rules, st.integers(0, 6), st.integers(0, 6), st.integers(0, 9))
def test_the_extension_selects_and_packs_as_its_twin_does(
    payloads: list[bytes], rule: Any, skip: int, take: int, cut: int
) -> None:
    whole = frames_of(*payloads)
    frames = whole[: len(whole) - cut]

    def outcome(engine: Any, act: Any) -> object:
        try:
            return act(engine)
        except OptionError as error:
            return str(error)

    for act in (
        lambda engine: repr(engine.Selector(*rule)),
        lambda engine: hash(engine.Selector(*rule)),
        lambda engine: engine.Selector(*rule).count(frames),
        lambda engine: engine.pack(frames, engine.Selector(*rule), skip, take),
    ):
        results = [outcome(load_engine(name), act) for name in ("c", "python")]
        assert results[0] == results[1]


def test_selecting_and_packing_leave_no_memory_behind(engine: Any) -> None:
    frames = frames_of(*[bytes(16)] * 10)

    def work() -> None:
        for _ in range(100):
            selector = engine.Selector(16, True, 0, 2, (0, 1, 2))
            selector.count(frames)
            engine.pack(frames, selector, 1, 5)
            engine.pack(frames, selector, 8, 5)
            copy.copy(selector)
            with contextlib.suppress(OptionError):
                engine.Selector(16, True, 0, 2, (0, 1 << 17))
            with contextlib.suppress(OptionError):
                engine.pack(frames[:-1], selector, 0, 99)

    work()
    gc.collect()
    references = sys.getrefcount(engine.Selector)
    tracemalloc.start()
    work()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(10):
        work()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert sys.getrefcount(engine.Selector) - references < 100  # the interpreter caches some
    assert after - before < 20_000  # an object lost in each of 1000 rounds would be 48 000
