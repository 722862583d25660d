"""Slots, generations, cells and callbacks of a region; the kernel's part is played by the test."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import mmap
import struct
import sys
import threading
import time
import types
import weakref
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest

THREADS, SLOTS, SLOT_BYTES = 4, 40, 2688
SLOTS_OFFSET = THREADS * 64
NAMES = {"c": "kerneltrace_core._native._step", "python": "kerneltrace_core.requests.pystep"}
Ledger = namedtuple(
    "Ledger",
    "start_ns end_ns run_ns nested_ns gap_ns loop_wait_min_ns loop_wait_max_ns loop_block_max_ns "
    "steps thread_ns threads detached flags value in_flight spare",
)
CELL, POLL_NS, POLL_SLEEP_NS, OFF_NS = range(4)
READ_BYTES, NET_TX_BYTES, DISK_READS, DISK_WRITES, TCP_RETRANSMITS = 1, 4, 5, 6, 10
BANK = 1 << 31


def ledger(block: bytes) -> Ledger:
    assert len(block) == SLOT_BYTES + 128
    return Ledger(*struct.unpack("<16Q", block[SLOT_BYTES:]))


class Playground:
    """A region in plain memory, and the words that the kernel would write."""

    def __init__(self, steps: Any, slots: int = SLOTS) -> None:
        self.steps = steps
        self.memory = bytearray(SLOTS_OFFSET + slots * SLOT_BYTES)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.words = memoryview(self.memory).cast("Q")
        self.registered = 0
        self.indices = iter(range(THREADS))
        self.region = steps.Region(
            self.memory, self.address, THREADS, slots, SLOTS_OFFSET, SLOT_BYTES, self.register
        )

    def register(self) -> None:
        self.registered += 1
        self.region.bind(next(self.indices))

    def entry(self, index: int, word: int) -> int:
        return self.words[index * 8 + word]

    def set_entry(self, index: int, word: int, value: int) -> None:
        self.words[index * 8 + word] = value

    def slot(self, slot: int) -> int:
        return (SLOTS_OFFSET + slot * SLOT_BYTES) // 8

    def charge(self, slot: int, word: int, amount: int) -> None:
        self.words[self.slot(slot) + word] += amount

    def generation(self, slot: int) -> int:
        return self.words[self.slot(slot)]

    def late(self, word: int) -> int:
        return int(struct.unpack_from("<Q", self.region.late(), word * 8)[0])


@pytest.fixture(params=["c", "python"])
def steps(request: pytest.FixtureRequest) -> Any:
    """Return one implementation's module."""
    if request.param == "c":
        return pytest.importorskip(NAMES["c"], reason="_step is not built")
    return importlib.import_module(NAMES["python"])


@pytest.fixture
def ground(steps: Any) -> Any:
    ground = Playground(steps)
    yield ground
    ground.region.unbind()


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(str(args.exc_value)))
    return seen


def slot_of(record: Any) -> int:
    return int(record.value & 0x7FFFFFFF)


def generation_of(record: Any) -> int:
    return int(record.value >> 32)


def run_step(record: Any, work: Callable[[], object]) -> None:
    async def coroutine() -> None:
        work()

    with pytest.raises(StopIteration):
        record.step(coroutine()).send(None)


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


# ---- slots ----


def test_the_first_slot_after_the_two_reserved_ones_is_given_first(ground: Any) -> None:
    record = ground.region.open()

    assert record.value == 2 | 1 << 32
    assert ground.generation(2) == 1
    assert ground.region.slots_open == 1
    record.close()
    assert ground.region.slots_open == 0


def test_a_slot_is_zeroed_when_opened_and_not_when_closed(ground: Any) -> None:
    ground.charge(2, READ_BYTES, 99)  # left by another process

    record = ground.region.open()
    assert struct.unpack_from("<Q", record.snapshot(), 8 * READ_BYTES)[0] == 0
    ground.charge(2, READ_BYTES, 5)
    record.close()

    assert ground.words[ground.slot(2) + READ_BYTES] == 5


def test_a_block_holds_the_slot_and_the_ledger(ground: Any) -> None:
    record = ground.region.open()
    ground.charge(slot_of(record), READ_BYTES, 4096)
    ground.charge(slot_of(record), SLOT_BYTES // 8 - 1, 7)
    value = record.value

    for block in (record.mark(), record.snapshot(), record.close()):
        words = struct.unpack(f"<{SLOT_BYTES // 8}Q", block[:SLOT_BYTES])
        assert (words[READ_BYTES], words[-1], sum(words[1:])) == (4096, 7, 4103)
        assert ledger(block).value == value


def test_a_closed_slot_fits_no_cell_of_its_time_and_gets_a_new_generation(ground: Any) -> None:
    record = ground.region.open()
    before = generation_of(record)

    record.close()

    assert record.value == 0
    assert ground.generation(2) == before + 1


def test_no_generation_is_zero(ground: Any) -> None:
    ground.words[ground.slot(2)] = 0xFFFFFFFF

    record = ground.region.open()
    assert generation_of(record) == 1
    record.close()
    ground.words[ground.slot(3)] = 0xFFFFFFFE
    last = ground.region.open()
    assert (slot_of(last), generation_of(last)) == (3, 0xFFFFFFFF)
    last.close()

    assert ground.generation(3) == 1


def test_slots_are_reused_first_in_first_out_from_a_small_set(ground: Any) -> None:
    used = []
    for _ in range(60):
        record = ground.region.open()
        used.append(slot_of(record))
        record.close()

    assert used[:17] == list(range(2, 19))
    assert used[17:34] == used[:17]
    assert set(used) == set(range(2, 19))


def test_two_times_of_one_slot_differ_in_their_generation(ground: Any) -> None:
    values = []
    for _ in range(40):
        record = ground.region.open()
        values.append(record.value)
        record.close()

    assert len(set(values)) == 40


def test_when_all_slots_are_taken_records_go_on_without_one(ground: Any) -> None:
    taken = [ground.region.open() for _ in range(SLOTS - 2)]
    assert all(record.value for record in taken)

    extra = ground.region.open()
    run_step(extra, lambda: time.sleep(0.001))

    assert extra.value == 0
    assert ground.region.slots_exhausted == 1
    assert ground.region.slots_open == SLOTS - 2
    found = ledger(extra.close())
    assert found.run_ns >= 1_000_000
    assert found.flags & 1
    with pytest.raises(ValueError, match="closed"):
        extra.close()
    first = slot_of(taken[0])
    taken[0].close()
    assert slot_of(ground.region.open()) == first


def test_a_record_without_a_slot_is_published_as_nobody(ground: Any) -> None:
    taken = [ground.region.open() for _ in range(SLOTS - 2)]
    extra = ground.region.open()
    cells = []

    def work() -> None:
        cells.append((ground.entry(0, CELL), ground.steps.current() is extra))

    run_step(extra, work)

    assert cells == [(0, True)]
    assert len(taken) == SLOTS - 2


def test_a_closed_record_cannot_be_read_or_closed_again(ground: Any) -> None:
    record = ground.region.open()
    record.close()

    for read in (record.close, record.mark, record.snapshot):
        with pytest.raises(ValueError, match="closed"):
            read()


def test_a_record_that_is_dropped_gives_its_slot_back_and_its_counters_are_late(
    ground: Any,
) -> None:
    record = ground.region.open()
    ground.charge(2, READ_BYTES, 11)
    generation = generation_of(record)

    del record

    assert ground.region.slots_open == 0
    assert ground.generation(2) == generation + 1
    assert ground.late(READ_BYTES) == 11


# ---- residual ----


@pytest.mark.parametrize("word", [DISK_READS, DISK_WRITES])
def test_what_comes_after_the_copy_of_a_slot_with_disk_is_late(ground: Any, word: int) -> None:
    record = ground.region.open()
    ground.charge(2, word, 1)
    ground.charge(2, READ_BYTES, 100)
    record.close()

    ground.charge(2, word, 2)
    ground.charge(2, READ_BYTES, 30)

    assert (ground.late(word), ground.late(READ_BYTES)) == (2, 30)
    for _ in range(17):  # until the slot is used again
        again = ground.region.open()
        again.close()
    assert slot_of(ground.region.open()) != 2 or ground.generation(2) > 2
    assert (ground.late(word), ground.late(READ_BYTES), ground.late(0)) == (2, 30, 0)


def test_a_segment_that_is_sent_again_after_the_copy_is_late(ground: Any) -> None:
    record = ground.region.open()
    ground.charge(2, NET_TX_BYTES, 1000)
    ground.charge(2, TCP_RETRANSMITS, 5)
    record.close()

    ground.charge(2, TCP_RETRANSMITS, 3)

    assert (ground.late(TCP_RETRANSMITS), ground.late(NET_TX_BYTES)) == (3, 0)
    for _ in range(18):  # until the slot is used again
        ground.region.open().close()
    assert ground.generation(2) > 2
    assert (ground.late(TCP_RETRANSMITS), ground.late(NET_TX_BYTES)) == (3, 0)


def test_residuals_of_all_times_of_a_slot_add_up(ground: Any) -> None:
    for _ in range(100):
        record = ground.region.open()
        slot = slot_of(record)
        ground.charge(slot, DISK_WRITES, 1)
        record.close()
        ground.charge(slot, DISK_WRITES, 3)

    assert ground.late(DISK_WRITES) == 300


def test_a_slot_whose_thread_or_step_went_on_is_watched_for_residuals(ground: Any) -> None:
    async def never() -> None:
        pass

    detached, threaded = ground.region.open(), ground.region.open()
    step = detached.step(never())
    ground.steps.pop(ground.steps.push(threaded))
    in_thread(lambda: ground.steps.pop(ground.steps.push(threaded)))
    for slot, record in ((2, detached), (3, threaded)):
        record.close()
        ground.charge(slot, READ_BYTES, slot)

    assert ground.late(READ_BYTES) == 5
    step.close()


def test_a_slot_that_nothing_can_reach_any_more_is_not_watched(ground: Any) -> None:
    record = ground.region.open()
    run_step(record, lambda: None)
    record.close()

    ground.charge(2, READ_BYTES, 1)

    assert ground.late(READ_BYTES) == 0


# ---- cells ----


def test_the_cell_names_the_record_while_its_step_runs(ground: Any) -> None:
    record = ground.region.open()
    seen = []

    run_step(record, lambda: seen.append((ground.entry(0, CELL), ground.steps.read_cell())))

    assert seen == [(record.value, record.value)]
    assert ground.entry(0, CELL) == 0
    assert ground.registered == 1


def test_a_second_thread_has_its_own_cell_in_the_other_bank(ground: Any) -> None:
    record = ground.region.open()
    run_step(record, lambda: None)
    seen = []

    def work() -> None:
        previous = ground.steps.push(record)
        seen.append((ground.entry(0, CELL), ground.entry(1, CELL)))
        ground.steps.pop(previous)
        seen.append((ground.entry(0, CELL), ground.entry(1, CELL)))
        ground.region.unbind()

    in_thread(work)

    assert seen == [(0, record.value | BANK), (0, 0)]


def test_a_cell_that_is_given_to_another_thread_is_left_empty(ground: Any) -> None:
    record = ground.region.open()
    ground.steps.push(record)
    assert ground.entry(0, CELL) == record.value

    ground.region.bind(2)
    assert (ground.entry(0, CELL), ground.entry(2, CELL)) == (0, record.value)
    assert ground.steps.cell_address() == ground.address + 2 * 64
    ground.region.unbind()

    assert ground.entry(2, CELL) == 0
    assert not ground.region.bound()
    assert ground.steps.cell_address() == 0
    ground.steps.pop(None)


def test_a_thread_with_a_private_cell_counts_as_bound_and_nobody_sees_it(ground: Any) -> None:
    ground.region.bind(-1)
    record = ground.region.open()
    seen = []

    run_step(record, lambda: seen.append(ground.steps.read_cell()))

    assert ground.region.bound()
    assert seen == [record.value]
    assert ground.registered == 0
    assert all(ground.entry(index, CELL) == 0 for index in range(THREADS))
    assert ledger(record.close()).flags & 2


@pytest.mark.parametrize("index", [-2, THREADS])
def test_binding_to_an_entry_that_is_not_there_is_refused(ground: Any, index: int) -> None:
    with pytest.raises(ValueError, match=r"bind thread: no entry .* \(-1 to 3\)"):
        ground.region.bind(index)


def test_a_thread_that_cannot_be_registered_is_asked_once_and_works_unseen(
    steps: Any, unraisable: list[str]
) -> None:
    asked = []

    def refuse() -> None:
        asked.append(1)
        raise RuntimeError("no entry left")

    memory = bytearray(SLOTS_OFFSET + SLOTS * SLOT_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = steps.Region(memory, address, THREADS, SLOTS, SLOTS_OFFSET, SLOT_BYTES, refuse)
    record = region.open()

    for _ in range(3):
        run_step(record, lambda: None)

    assert (asked, unraisable) == ([1], ["no entry left"])
    assert region.bound()
    found = ledger(record.close())
    assert (found.steps, found.flags & 2) == (3, 2)
    region.unbind()


def test_a_thread_that_ends_inside_a_record_leaves_an_empty_cell(ground: Any) -> None:
    record = ground.region.open()
    run_step(record, lambda: None)

    in_thread(lambda: ground.steps.push(record))  # and never pop
    gc.collect()

    assert ground.entry(1, CELL) == 0
    found = ledger(record.close())
    assert (found.threads, found.detached) == (1, 0)


def test_steps_of_two_regions_on_one_thread_never_publish_into_each_other(steps: Any) -> None:
    first, second = Playground(steps), Playground(steps)
    outer, inner = first.region.open(), second.region.open()
    seen = []

    def nested() -> None:
        seen.append((first.entry(0, CELL), second.entry(0, CELL)))

    def work() -> None:
        run_step(inner, nested)
        seen.append((first.entry(0, CELL), second.entry(0, CELL)))

    run_step(outer, work)

    assert seen == [(0, inner.value), (0, 0)]
    second.region.unbind()


# ---- callbacks ----


def test_the_sampler_sees_the_cell_before_each_border(ground: Any) -> None:
    outer, inner = ground.region.open(), ground.region.open()
    ground.region.bind(0)
    seen: list[tuple[int, int]] = []
    ground.region.sampler = lambda value, now_ns: seen.append((value, now_ns))

    run_step(outer, lambda: run_step(inner, lambda: None))
    ground.region.sampler = None
    run_step(outer, lambda: None)

    assert [value for value, _ in seen] == [0, outer.value, inner.value, outer.value]
    times = [now for _, now in seen]
    assert times == sorted(times)
    assert abs(times[0] - time.monotonic_ns()) < 60 * 10**9


def test_a_failing_sampler_disturbs_neither_results_nor_exceptions(
    ground: Any, unraisable: list[str]
) -> None:
    def sampler(value: int, now_ns: int) -> None:
        raise RuntimeError("sampler")

    async def raises() -> None:
        raise KeyError("own")

    ground.region.sampler = sampler
    record = ground.region.open()

    with pytest.raises(KeyError, match="own") as caught:
        record.step(raises()).send(None)

    assert caught.value.__context__ is None
    assert unraisable == ["sampler", "sampler"]
    assert ground.entry(0, CELL) == 0


class Gaps:
    """One coroutine that suspends, with the poll stamps of a loop that the test plays."""

    def __init__(self, ground: Any) -> None:
        self.ground = ground
        self.record = ground.region.open()
        self.future = types.coroutine(lambda: (yield "future"))
        self.step = self.record.step(self.main())
        self.step.send(None)
        self.left = ledger(self.record.snapshot())

    async def main(self) -> None:
        while True:
            await self.future()

    def resume(self, poll_after: int | None, sleep_after: int | None) -> Any:
        """Resume 3 ms later, with the last polls that long after the gap's begin."""
        begin = time.monotonic_ns()
        time.sleep(0.003)
        for word, after in ((POLL_NS, poll_after), (POLL_SLEEP_NS, sleep_after)):
            self.ground.set_entry(0, word, 0 if after is None else begin + after)
        self.step.send(None)
        found = ledger(self.record.snapshot())
        self.record.close()
        self.step.close()
        return found


def test_without_poll_stamps_the_whole_gap_may_be_loop_wait(ground: Any) -> None:
    found = Gaps(ground).resume(None, None)

    assert found.loop_wait_min_ns == 0
    assert 3_000_000 < found.loop_wait_max_ns <= found.gap_ns


def test_loop_wait_lies_between_the_last_poll_and_the_last_poll_that_slept(ground: Any) -> None:
    found = Gaps(ground).resume(poll_after=2_000_000, sleep_after=1_000_000)

    assert 1_000_000 <= found.loop_wait_min_ns <= found.gap_ns - 2_000_000
    assert found.loop_wait_max_ns - found.loop_wait_min_ns == 1_000_000
    assert found.loop_wait_max_ns <= found.gap_ns - 1_000_000


def test_stamps_from_before_the_gap_bound_it_by_the_gap(ground: Any) -> None:
    found = Gaps(ground).resume(poll_after=-(10**9), sleep_after=-2 * 10**9)

    assert 3_000_000 < found.loop_wait_min_ns == found.loop_wait_max_ns
    assert found.loop_wait_max_ns <= found.gap_ns


def test_stamps_from_the_future_mean_no_wait(ground: Any) -> None:
    found = Gaps(ground).resume(poll_after=10**12, sleep_after=10**12)

    assert (found.loop_wait_min_ns, found.loop_wait_max_ns) == (0, 0)


def test_a_wait_in_doubt_is_settled_by_ready_at(ground: Any) -> None:
    gaps = Gaps(ground)
    asked = []

    def ready_at(coroutine: object) -> int:
        asked.append(coroutine)
        return time.monotonic_ns() - 1_500_000

    ground.region.ready_at = ready_at
    found = gaps.resume(None, None)

    assert [coroutine.__name__ for coroutine in asked] == ["main"]
    assert asked[0] is not gaps.step
    assert found.loop_wait_min_ns == found.loop_wait_max_ns
    # Less what passes between the border's clock and ours.
    assert 0 <= found.loop_wait_min_ns <= 1_500_000


def test_a_step_begins_when_ready_at_has_answered(ground: Any) -> None:
    def ready_at(coroutine: object) -> int:
        time.sleep(0.05)
        return 0

    ground.region.ready_at = ready_at
    found = Gaps(ground).resume(None, None)

    # Else a switch in there would pass for time on the CPU: the kernel does not see it as ours.
    assert found.gap_ns >= 53_000_000


def test_the_answer_of_ready_at_is_kept_within_the_bounds(ground: Any) -> None:
    ground.region.ready_at = lambda coroutine: 1  # since boot
    found = Gaps(ground).resume(poll_after=2_900_000, sleep_after=500_000)

    assert found.loop_wait_min_ns == found.loop_wait_max_ns <= found.gap_ns - 500_000
    ground.region.ready_at = lambda coroutine: time.monotonic_ns() + 10**9
    found = Gaps(ground).resume(poll_after=1_000_000, sleep_after=-1)
    assert 2_000_000 <= found.loop_wait_min_ns == found.loop_wait_max_ns


@pytest.mark.parametrize("answer", [0, -1, "noon", None, 1 << 70])
def test_without_a_usable_answer_the_bounds_stay(
    ground: Any, unraisable: list[str], answer: object
) -> None:
    ground.region.ready_at = lambda coroutine: answer
    found = Gaps(ground).resume(None, None)

    assert (found.loop_wait_min_ns, len(unraisable)) == (0, 0 if answer == 0 else 1)
    assert found.loop_wait_max_ns > 3_000_000


def test_ready_at_is_not_asked_within_doubt_or_with_several_steps(ground: Any) -> None:
    asked: list[object] = []
    ground.region.ready_at = lambda coroutine: asked.append(coroutine) or 0
    ground.region.doubt_ns = 10**10
    Gaps(ground).resume(None, None)
    ground.region.doubt_ns = 1_000_000
    gaps = Gaps(ground)
    second = gaps.record.step(gaps.main())

    gaps.resume(None, None)

    assert asked == []
    second.close()


def test_after_a_bare_yield_the_whole_gap_is_loop_wait(ground: Any) -> None:
    record = ground.region.open()
    blocks = []

    async def main() -> None:
        await asyncio.sleep(0)
        blocks.append(record.mark())

    step = record.step(main())
    step.send(None)
    ground.set_entry(0, POLL_NS, time.monotonic_ns())
    ground.set_entry(0, POLL_SLEEP_NS, time.monotonic_ns())
    time.sleep(0.002)

    with pytest.raises(StopIteration):
        step.send(None)

    found = ledger(blocks[0])
    assert found.loop_wait_min_ns == found.loop_wait_max_ns == found.gap_ns > 2_000_000


# ---- lifetime ----


def test_a_forgotten_region_is_never_touched_again(ground: Any) -> None:
    open_one, running = ground.region.open(), ground.region.open()
    ground.steps.push(running)
    before = bytes(ground.memory)

    ground.region.forget()
    run_step(open_one, lambda: None)
    ground.steps.pop(None)
    for record in (open_one, running):
        found = record.close()
        assert found[:SLOT_BYTES] == bytes(SLOT_BYTES)
    assert ledger(found).run_ns > 0
    assert ground.region.open().value == 0
    assert ground.region.late() == bytes(SLOT_BYTES)

    assert bytes(ground.memory) == before


def test_a_record_of_a_forgotten_region_leaves_the_thread_where_it_is(steps: Any) -> None:
    old, new = Playground(steps), Playground(steps)
    stale, fresh = old.region.open(), new.region.open()
    old.region.forget()
    seen = []

    run_step(fresh, lambda: run_step(stale, lambda: seen.append(new.entry(0, CELL))))
    run_step(stale, lambda: seen.append(new.entry(0, CELL)))
    run_step(fresh, lambda: seen.append(new.entry(0, CELL)))

    assert seen == [0, 0, fresh.value]
    assert (old.registered, new.registered) == (0, 1)
    found = ledger(stale.close())
    assert (found.steps, found.flags & 2) == (2, 2)
    new.region.unbind()


def test_the_memory_can_be_unmapped_once_it_is_forgotten(steps: Any) -> None:
    memory = mmap.mmap(-1, SLOTS_OFFSET + SLOTS * SLOT_BYTES)
    pinned = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(pinned)
    del pinned
    region = steps.Region(memory, address, THREADS, SLOTS, SLOTS_OFFSET, SLOT_BYTES, int)
    region.bind(0)
    record = region.open()

    with pytest.raises(BufferError):
        memory.close()
    region.forget()
    gc.collect()
    memory.close()

    run_step(record, lambda: None)
    record.close()
    region.unbind()


def test_a_region_in_a_cycle_with_its_records_is_collected(steps: Any) -> None:
    ground = Playground(steps)
    record = ground.region.open()
    record.info = ground
    ground.region.sampler = lambda value, now_ns, keep=ground: None
    gone = weakref.ref(record)

    del ground, record
    gc.collect()

    assert gone() is None


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 0},
        {"threads": THREADS + 1},
        {"slots": SLOTS + 1},
        {"slots": 1},
        {"slots": -1},
        {"slot_bytes": SLOT_BYTES + 8},
        {"slot_bytes": 100},
        {"slot_bytes": 0},
        {"slots_offset": SLOTS_OFFSET + 4},
        {"slots_offset": 1 << 62},
        {"address": 0},
    ],
)
def test_a_shape_that_does_not_fit_the_memory_is_refused(
    steps: Any, change: dict[str, int]
) -> None:
    memory = bytearray(SLOTS_OFFSET + SLOTS * SLOT_BYTES)
    shape = {
        "address": ctypes.addressof(ctypes.c_char.from_buffer(memory)),
        "threads": THREADS,
        "slots": SLOTS,
        "slots_offset": SLOTS_OFFSET,
        "slot_bytes": SLOT_BYTES,
    }

    with pytest.raises(ValueError, match=r"open region: .* do not fit .* bytes"):
        steps.Region(memory=memory, register=int, **{**shape, **change})


def test_memory_that_cannot_be_written_is_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match="read-only"):
        steps.Region(bytes(1 << 20), 8, THREADS, SLOTS, SLOTS_OFFSET, SLOT_BYTES, int)
    with pytest.raises(TypeError):
        steps.Region(object(), 8, THREADS, SLOTS, SLOTS_OFFSET, SLOT_BYTES, int)
