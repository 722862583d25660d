"""Queues: what goes when there is no space, exactly."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneltrace_core.errors import OptionError
from kerneltrace_core.ring.frames import make_frame, split
from kerneltrace_core.session.overflow import Queue

pytestmark = pytest.mark.unit


def frames_of(numbers: range) -> bytes:
    return b"".join(make_frame(struct.pack("=Q", number)) for number in numbers)


def taken(queue: Queue) -> list[int]:
    numbers = []
    while (batch := queue.take()) is not None:
        frames, skip, take = batch
        payloads = [payload for payload, _ in split(frames)][skip : skip + take]
        assert len(payloads) == take
        numbers += [struct.unpack("=Q", payload)[0] for payload in payloads]
    return numbers


def test_what_has_space_comes_out_as_it_went_in() -> None:
    queue = Queue(10, "drop_oldest")
    queue.put(frames_of(range(4)), 4)
    queue.put(frames_of(range(4, 10)), 6)

    assert (queue.records, queue.space, queue.dropped) == (10, 0, 0)
    assert taken(queue) == list(range(10))
    assert (queue.records, queue.take()) == (0, None)


def test_the_oldest_go_in_the_midst_of_a_batch_and_across_batches() -> None:
    queue = Queue(10, "drop_oldest")
    queue.put(frames_of(range(4)), 4)
    queue.put(frames_of(range(4, 10)), 6)
    queue.put(frames_of(range(10, 12)), 2)
    after_two = queue.dropped
    queue.put(frames_of(range(12, 16)), 4)

    assert after_two == 2
    assert queue.dropped == 6
    assert taken(queue) == list(range(6, 16))


def test_of_more_than_fits_the_newest_stay() -> None:
    queue = Queue(3, "drop_oldest")
    queue.put(frames_of(range(2)), 2)
    queue.put(frames_of(range(2, 10)), 8)

    assert queue.dropped == 7
    assert taken(queue) == [7, 8, 9]


@pytest.mark.parametrize("policy", ["drop_newest", "block"])
def test_of_more_than_fits_the_oldest_stay(policy: str) -> None:
    queue = Queue(3, policy)
    queue.put(frames_of(range(2)), 2)
    queue.put(frames_of(range(2, 10)), 8)
    queue.put(frames_of(range(10, 11)), 1)

    assert queue.dropped == 8
    assert taken(queue) == [0, 1, 2]


def test_clearing_says_how_many_there_were() -> None:
    queue = Queue(10, "drop_oldest")
    queue.put(frames_of(range(4)), 4)

    assert queue.clear() == 4
    assert (queue.records, queue.dropped, queue.take()) == (0, 0, None)


@pytest.mark.parametrize(("capacity", "policy"), [(0, "block"), (-1, "block"), (1, "drop")])
def test_a_queue_refuses_what_it_cannot_be(capacity: int, policy: str) -> None:
    with pytest.raises(OptionError, match=r"make queue: "):
        Queue(capacity, policy)


@given(
    capacity=st.integers(1, 12),
    policy=st.sampled_from(["drop_oldest", "drop_newest", "block"]),
    steps=st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=30),
)
def test_what_went_in_came_out_or_was_dropped(
    capacity: int, policy: str, steps: list[int | None]
) -> None:
    queue = Queue(capacity, policy)
    put, out, number = 0, [], 0
    for step in steps:
        if step is None:
            batch = queue.take()
            if batch is not None:
                frames, skip, take = batch
                records = [struct.unpack("=Q", payload)[0] for payload, _ in split(frames)]
                out += records[skip : skip + take]
        else:
            queue.put(frames_of(range(number, number + step)), step)
            number += step
            put += step
        assert 0 <= queue.records <= capacity
    out += taken(queue)

    assert len(out) + queue.dropped == put
    assert out == sorted(out)
