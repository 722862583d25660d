"""Seats of threads: each gets one when it first works, and gives it back with its end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.requests import layout
from kerneltrace_core.requests.threads import ThreadSeats

pytestmark = pytest.mark.unit


class FakeRegion:
    def __init__(self) -> None:
        self.bound: list[int] = []
        self.unbound = 0

    def bind(self, index: int) -> None:
        self.bound.append(index)

    def unbind(self) -> None:
        self.unbound += 1


class FakeKernel:
    def __init__(self) -> None:
        self.entered: list[int] = []
        self.left = 0
        self.refuses: type[Exception] | None = None

    def enter(self, index: int) -> None:
        if self.refuses is not None:
            raise self.refuses("no")
        self.entered.append(index)

    def leave(self) -> None:
        if self.refuses is not None:
            raise self.refuses("no")
        self.left += 1


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def region() -> FakeRegion:
    return FakeRegion()


@pytest.fixture
def memory() -> memoryview:
    return memoryview(bytearray(b"\xff" * layout.SLOTS_OFFSET))


@pytest.fixture
def seats(kernel: FakeKernel, region: FakeRegion, memory: memoryview) -> ThreadSeats:
    seats = ThreadSeats(kernel.enter, kernel.leave, memory)
    seats.region = region  # type: ignore[assignment]
    return seats


def on_a_thread(work: Callable[[], Any]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_thread_sits_down_and_its_end_gives_the_seat_back(
    seats: ThreadSeats, kernel: FakeKernel, region: FakeRegion
) -> None:
    on_a_thread(seats.sit_down)

    assert kernel.entered == region.bound == [0]
    assert (kernel.left, region.unbound) == (1, 1)
    assert len(seats._free) == layout.THREADS


def test_what_the_last_one_left_in_the_entry_is_wiped_before_the_kernel_knows(
    seats: ThreadSeats, kernel: FakeKernel, memory: memoryview
) -> None:
    wiped: list[bytes] = []
    seats._enter = lambda index: wiped.append(bytes(memory[: layout.THREAD_BYTES]))

    on_a_thread(seats.sit_down)

    assert wiped == [bytes(layout.THREAD_BYTES)]
    assert memory[layout.THREAD_BYTES] == 0xFF


def test_far_more_threads_than_seats_sit_one_after_the_other(
    seats: ThreadSeats, kernel: FakeKernel
) -> None:
    for _ in range(layout.THREADS + 88):
        on_a_thread(seats.sit_down)

    assert kernel.left == layout.THREADS + 88
    assert seats.refused == 0


def test_when_all_seats_are_taken_the_thread_works_unseen_and_one_warning_says_so(
    seats: ThreadSeats,
    kernel: FakeKernel,
    region: FakeRegion,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seats._free.clear()

    with caplog.at_level(logging.WARNING, "kerneltrace"):
        on_a_thread(seats.sit_down)
        on_a_thread(seats.sit_down)

    assert region.bound == [-1, -1]
    assert (kernel.entered, seats.refused) == ([], 2)
    (told,) = caplog.messages
    assert "all entries are taken; its work is charged to no request" in told


@pytest.mark.parametrize("error", [KernelTraceError, OSError])
def test_a_kernel_that_refuses_a_thread_costs_no_seat(
    seats: ThreadSeats, kernel: FakeKernel, region: FakeRegion, error: type[Exception]
) -> None:
    kernel.refuses = error

    on_a_thread(seats.sit_down)

    assert region.bound == [-1]
    assert seats.refused == 1
    assert len(seats._free) == layout.THREADS


def test_a_thread_that_the_kernel_may_still_charge_keeps_its_seat_from_others(
    seats: ThreadSeats, kernel: FakeKernel, region: FakeRegion
) -> None:
    def work() -> None:
        seats.sit_down()
        kernel.refuses = OSError

    on_a_thread(work)

    assert region.unbound == 1
    assert 0 not in seats._free


def test_after_the_close_nothing_is_given_back_and_nobody_sits_down(
    seats: ThreadSeats, kernel: FakeKernel, region: FakeRegion, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        seats.sit_down()
        seats.close()

    on_a_thread(work)
    on_a_thread(seats.sit_down)

    assert (kernel.entered, kernel.left) == ([0], 0)
    assert region.bound == [0, -1]
    assert caplog.messages == []


def test_without_a_region_nobody_sits_down(kernel: FakeKernel, memory: memoryview) -> None:
    seats = ThreadSeats(kernel.enter, kernel.leave, memory)

    on_a_thread(seats.sit_down)

    assert kernel.entered == []
