"""A step in the hands of the interpreter, asyncio and threads, and the ledger that it keeps."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import ctypes
import gc
import importlib
import inspect
import io
import itertools
import os
import random
import re
import struct
import subprocess
import sys
import threading
import time
import types
import warnings
import weakref
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest

THREADS, SLOTS, SLOT_BYTES = 16, 64, 128
SLOTS_OFFSET = THREADS * 64
NAMES = {"c": "kerneltrace_core._native._step", "python": "kerneltrace_core.requests.pystep"}
Ledger = namedtuple(
    "Ledger",
    "start_ns end_ns run_ns nested_ns gap_ns loop_wait_min_ns loop_wait_max_ns loop_block_max_ns "
    "steps thread_ns threads detached flags value in_flight spare",
)
OFF_NS = 3
MS = 1_000_000


def ledger(block: bytes) -> Ledger:
    """Return the ledger by name, after checking that it sums to its time."""
    found = Ledger(*struct.unpack("<16Q", block[SLOT_BYTES:]))
    assert found.end_ns - found.start_ns == found.run_ns + found.nested_ns + found.gap_ns
    assert found.loop_wait_min_ns <= found.loop_wait_max_ns <= found.gap_ns
    return found


@pytest.fixture(params=["c", "python"])
def steps(request: pytest.FixtureRequest) -> Any:
    """Return one implementation's module."""
    if request.param == "c":
        return pytest.importorskip(NAMES["c"], reason="_step is not built")
    return importlib.import_module(NAMES["python"])


class Region:
    """A region in plain memory that gives each thread the next entry."""

    def __init__(self, steps: Any) -> None:
        self.memory = bytearray(SLOTS_OFFSET + SLOTS * SLOT_BYTES)
        self.words = memoryview(self.memory).cast("Q")
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.entries = itertools.count()  # whose next() no other thread can cut in two
        self.real = steps.Region(
            self.memory, address, THREADS, SLOTS, SLOTS_OFFSET, SLOT_BYTES, self.register
        )
        self.open = self.real.open

    def register(self) -> None:
        self.real.bind(next(self.entries))


@pytest.fixture
def region(steps: Any) -> Any:
    region = Region(steps)
    yield region
    region.real.unbind()


@pytest.fixture
def record(region: Any) -> Any:
    return region.open()


@types.coroutine
def suspend(value: object = "suspended") -> Any:
    return (yield value)


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


def finish(step: Any) -> object:
    """Send until it returns."""
    while True:
        try:
            step.send(None)
        except StopIteration as stop:
            return stop.value


# ---- as a coroutine ----


def test_a_step_counts_as_a_coroutine_and_shows_the_inner_one(record: Any) -> None:
    async def inner() -> None:
        await suspend()

    coroutine = inner()
    step = record.step(coroutine)

    assert isinstance(step, collections.abc.Coroutine)
    assert asyncio.iscoroutine(step)
    assert inspect.isawaitable(step)
    assert repr(step) == repr(coroutine)
    assert step.__qualname__ == coroutine.__qualname__
    assert step.__name__ == "inner"
    assert step.cr_code is coroutine.cr_code
    assert step.cr_frame is coroutine.cr_frame
    assert not step.cr_running
    assert inspect.getcoroutinestate(step) == "CORO_CREATED"
    step.send(None)
    assert step.cr_await is coroutine.cr_await is not None
    assert inspect.getcoroutinestate(step) == "CORO_SUSPENDED"
    step.close()
    assert inspect.getcoroutinestate(step) == "CORO_CLOSED"
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = step.no_such_name


def test_a_generator_based_coroutine_can_be_wrapped(record: Any, steps: Any) -> None:
    seen = []

    @types.coroutine
    def inner() -> Any:
        seen.append((yield 1))
        seen.append(steps.current() is record)
        return "done"

    async def outer() -> object:
        return await record.step(inner())

    coroutine = outer()
    assert coroutine.send(None) == 1
    with pytest.raises(StopIteration) as stop:
        coroutine.send(2)

    assert (stop.value.value, seen) == ("done", [2, True])
    step = record.step(inner())
    assert step.gi_frame is not None
    step.close()


@pytest.mark.parametrize("thing", [1, None, "text", [], object()])
def test_what_is_no_coroutine_is_refused(record: Any, thing: object) -> None:
    with pytest.raises(TypeError, match=r"make step: .* is not a coroutine"):
        record.step(thing)


@pytest.mark.parametrize(
    "value", [None, 1, (), (1, 2), ValueError("value"), StopIteration(4), KeyError, {}]
)
def test_a_returned_value_arrives_whole_whatever_it_is(record: Any, value: object) -> None:
    async def inner() -> object:
        return value

    async def outer() -> object:
        return await record.step(inner())

    for driven in (outer(), record.step(inner())):
        with pytest.raises(StopIteration) as stop:
            driven.send(None)
        assert stop.value.value is value
    with pytest.raises(StopIteration) as stop:
        next(record.step(inner()))
    assert stop.value.value is value
    assert list(record.step(inner())) == []


def test_a_finished_step_answers_like_a_finished_coroutine(record: Any) -> None:
    async def inner() -> int:
        return 1

    bare, step = inner(), record.step(inner())
    for coroutine in (bare, step):
        with pytest.raises(StopIteration):
            coroutine.send(None)

    for act in (lambda c: c.send(None), lambda c: c.throw(KeyError("late"))):
        answers = []
        for coroutine in (bare, step):
            with pytest.raises(RuntimeError) as caught:
                act(coroutine)
            answers.append(str(caught.value))
        assert answers[0] == answers[1] == "cannot reuse already awaited coroutine"
    assert step.close() is None


@pytest.mark.parametrize("count", [0, 4])
def test_throw_takes_one_to_three_arguments(record: Any, count: int) -> None:
    step = record.step(suspend())

    with pytest.raises(TypeError):
        step.throw(*[ValueError] * count)
    step.close()


def test_resuming_a_running_step_is_the_same_error_and_leaves_it_running(
    record: Any, steps: Any
) -> None:
    async def inner() -> object:
        with pytest.raises(ValueError, match="already executing"):
            step.send(None)
        assert steps.read_cell() == record.value
        await suspend()
        return ledger(record.mark()).in_flight

    step = record.step(inner())

    assert finish(step) == 1
    assert ledger(record.mark()).in_flight == 0


def test_steps_around_steps_end_in_a_recursion_error_and_not_in_a_crash(record: Any) -> None:
    async def inner() -> None:
        await suspend()

    # From 3.14 on it is the stack itself that is measured, and not the calls.
    depth = 20_000 if sys.version_info < (3, 14) else 200_000
    step = coroutine = inner()
    for _ in range(depth):
        step = record.step(step)

    with pytest.raises(RecursionError):
        step.send(None)

    coroutine.close()


def test_a_step_that_was_never_awaited_is_reported_like_the_bare_coroutine(record: Any) -> None:
    async def forgotten() -> None:
        pass

    messages = []
    for wrap in (lambda c: c, record.step):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wrap(forgotten())
            gc.collect()
        messages.append([str(warning.message) for warning in caught])

    assert messages[0] == messages[1]
    assert len(messages[0]) == 1
    assert ledger(record.mark()).in_flight == 0


# ---- borders ----


def test_each_step_restores_the_owner_before_it(region: Any, steps: Any) -> None:
    outer, inner = region.open(), region.open()
    seen = []

    async def nested() -> None:
        seen.append((steps.read_cell(), steps.current() is inner))

    async def main() -> None:
        finish(inner.step(nested()))
        seen.append((steps.read_cell(), steps.current() is outer))

    finish(outer.step(main()))

    assert seen == [(inner.value, True), (outer.value, True)]
    assert (steps.read_cell(), steps.current()) == (0, None)


@pytest.mark.parametrize(
    ("act", "arguments"),
    [("send", [None]), ("__next__", []), ("throw", [KeyError]), ("close", [])],
)
def test_every_way_to_resume_runs_as_the_record(
    record: Any, steps: Any, act: str, arguments: list[Any]
) -> None:
    seen = []

    async def inner() -> None:
        try:
            await suspend()
        finally:
            seen.append((steps.read_cell(), steps.current() is record))

    step = record.step(inner())
    step.send(None)
    with contextlib.suppress(StopIteration, KeyError):
        getattr(step, act)(*arguments)

    assert seen == [(record.value, True)]
    assert steps.read_cell() == 0


def test_a_step_of_a_closed_record_runs_as_nobody(region: Any, steps: Any) -> None:
    closed, outer = region.open(), region.open()
    seen = []

    async def inner() -> None:
        seen.append((steps.read_cell(), steps.current()))

    async def main() -> None:
        await closed.step(inner())
        seen.append((steps.read_cell(), steps.current()))

    step = outer.step(main())
    closed.close()
    finish(step)

    assert seen == [(0, None), (outer.value, outer)]


def test_a_record_closed_within_its_own_step_is_not_restored(region: Any, steps: Any) -> None:
    outer, inner = region.open(), region.open()
    seen = []

    async def nested() -> None:
        outer.close()

    async def main() -> None:
        await inner.step(nested())
        seen.append(steps.read_cell())

    finish(outer.step(main()))

    assert (seen, steps.read_cell()) == ([0], 0)


def test_push_and_pop_are_borders_for_plain_code(region: Any, steps: Any) -> None:
    record = region.open()

    first = steps.push(record)
    again = steps.push(record)
    nobody = steps.push(None)

    assert (first, again, nobody) == (None, record, record)
    assert (steps.current(), steps.read_cell()) == (None, 0)
    steps.pop(nobody)
    assert (steps.current(), steps.read_cell()) == (record, record.value)
    steps.pop(again)
    steps.pop(first)
    assert (steps.current(), steps.read_cell()) == (None, 0)
    found = ledger(record.close())
    assert found.steps == 1
    assert found.nested_ns > 0  # while it was nobody's turn


@pytest.mark.parametrize("name", ["push", "pop"])
def test_only_a_record_or_none_can_own_a_thread(steps: Any, name: str) -> None:
    with pytest.raises(TypeError, match="neither a Record nor None"):
        getattr(steps, name)("record")


def test_a_published_record_outlives_its_last_reference(region: Any, steps: Any) -> None:
    steps.push(region.open())
    gc.collect()

    assert steps.current().value == steps.read_cell() != 0
    assert region.real.slots_open == 1
    steps.pop(None)
    assert region.real.slots_open == 0


# ---- asyncio ----


def test_asyncio_shows_the_same_task_and_stack_as_for_the_bare_coroutine(record: Any) -> None:
    async def handler() -> None:
        await asyncio.sleep(60)

    async def look(wrap: Callable[[Any], Any]) -> tuple[str, list[str], str]:
        task = asyncio.get_running_loop().create_task(wrap(handler()), name="task")
        await asyncio.sleep(0)
        text = io.StringIO()
        task.print_stack(file=text)
        shown = re.sub("0x[0-9a-f]+", "", repr(task))
        stack = [frame.f_code.co_name for frame in task.get_stack()]
        task.cancel()
        return shown, stack, text.getvalue()

    expected = asyncio.run(look(lambda coroutine: coroutine))

    assert asyncio.run(look(record.step)) == expected
    assert "handler() running at" in expected[0]
    assert expected[1] == ["handler"]
    assert "in handler" in expected[2]


def test_asyncio_debug_mode_works_with_steps(region: Any) -> None:
    async def child() -> str:
        await asyncio.sleep(0.001)
        return "child"

    async def main() -> list[str]:
        record = region.open()
        tasks = [asyncio.create_task(record.step(child())) for _ in range(3)]
        assert all("child" in repr(task) for task in tasks)
        return await asyncio.gather(*tasks)

    assert asyncio.run(main(), debug=True) == ["child"] * 3


def test_a_task_cancelled_before_its_first_step_never_runs(record: Any) -> None:
    ran = []

    async def child() -> None:
        ran.append(1)

    async def main() -> bool:
        task = asyncio.create_task(record.step(child()))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return task.cancelled()

    assert asyncio.run(main()) is True
    assert ran == []
    assert ledger(record.close()).detached == 0


def test_a_cancellation_that_is_caught_twice_arrives_twice(record: Any, steps: Any) -> None:
    seen = []

    async def stubborn() -> str:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError as error:
                seen.append((error.args, steps.read_cell() == record.value))
        return "survived"

    async def main() -> str:
        task = asyncio.create_task(record.step(stubborn()))
        for reason in ("first", "second"):
            await asyncio.sleep(0)
            task.cancel(reason)
            await asyncio.sleep(0)
        return await task

    assert asyncio.run(main()) == "survived"
    assert seen == [(("first",), True), (("second",), True)]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks: python 3.12")
def test_an_eager_task_of_another_record_gives_the_thread_back(region: Any, steps: Any) -> None:
    outer, inner = region.open(), region.open()
    seen = []

    async def child() -> None:
        seen.append(("child", steps.read_cell()))
        await asyncio.sleep(0)
        seen.append(("child", steps.read_cell()))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        task = loop.create_task(inner.step(child()))
        seen.append(("main", steps.read_cell()))
        await task

    asyncio.run(run_as(outer, main()))

    assert seen == [("child", inner.value), ("main", outer.value), ("child", inner.value)]
    for found in (outer, inner):
        ledger(found.close())


async def run_as(record: Any, coroutine: Any) -> object:
    """Await as a record, for asyncio.run takes true coroutines only."""
    return await record.step(coroutine)


# ---- threads ----


def test_threads_work_for_a_record_in_the_other_bank(region: Any, steps: Any) -> None:
    record = region.open()
    seen = []

    def work() -> None:
        previous = steps.push(record)
        seen.append(steps.read_cell())
        time.sleep(0.002)
        steps.pop(previous)
        seen.append(steps.read_cell())

    async def main() -> None:
        await asyncio.gather(asyncio.to_thread(work), asyncio.to_thread(work))

    asyncio.run(run_as(record, main()))
    found = ledger(record.close())

    assert sorted(seen) == [0, 0, found.value | 1 << 31, found.value | 1 << 31]
    assert found.thread_ns >= 4 * MS
    assert found.threads in (1, 2)
    assert (found.detached, found.in_flight) == (0, 0)


def test_the_home_of_a_record_is_its_first_thread(region: Any, steps: Any) -> None:
    record = region.open()

    def home() -> None:
        previous = steps.push(record)
        time.sleep(0.001)
        steps.pop(previous)

    thread = threading.Thread(target=home)
    thread.start()
    thread.join()
    steps.pop(steps.push(record))
    found = ledger(record.close())

    assert found.run_ns >= MS
    assert (found.steps, found.threads) == (1, 1)
    assert found.thread_ns > 0


def test_a_thread_counts_once_however_often_it_comes(region: Any, steps: Any) -> None:
    record = region.open()
    steps.pop(steps.push(record))

    def work() -> None:
        for _ in range(5):
            steps.pop(steps.push(record))

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    assert ledger(record.close()).threads == 3


class Worker:
    """A thread inside a record until it is told to leave."""

    def __init__(self, steps: Any, record: Any) -> None:
        self.inside, self.leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.run, args=(steps, record))
        self.thread.start()
        self.inside.wait(10)

    def run(self, steps: Any, record: Any) -> None:
        previous = steps.push(record)
        self.inside.set()
        self.leave.wait(10)
        steps.pop(previous)

    def end(self) -> None:
        self.leave.set()
        self.thread.join()


def test_a_thread_that_is_still_at_work_is_in_the_block_and_detached_at_close(
    region: Any, steps: Any
) -> None:
    record = region.open()
    steps.pop(steps.push(record))
    worker = Worker(steps, record)
    time.sleep(0.002)

    found = ledger(record.snapshot())
    assert (found.in_flight, found.detached, found.threads) == (1, 0, 1)
    assert found.thread_ns >= 2 * MS
    final = ledger(record.close())
    assert (final.in_flight, final.detached) == (1, 1)
    worker.end()


def test_time_of_a_thread_that_is_off_cpu_is_left_to_the_kernel(region: Any, steps: Any) -> None:
    record = region.open()
    steps.pop(steps.push(record))
    begin = time.monotonic_ns()
    worker = Worker(steps, record)
    off_ns = time.monotonic_ns()
    region.words[1 * 8 + OFF_NS] = off_ns
    time.sleep(0.005)

    found = ledger(record.close())

    assert 0 < found.thread_ns <= off_ns - begin
    region.words[1 * 8 + OFF_NS] = 0
    worker.end()


@pytest.mark.parametrize("act", ["enter", "leave", "snapshot", "close"])
def test_a_thread_that_the_kernel_takes_for_one_off_cpu_is_seen_before_times_are_compared(
    region: Any, steps: Any, act: str
) -> None:
    record = region.open()
    before = steps.push(record)
    if act == "enter":
        steps.pop(before)
    cell = steps.read_cell()
    region.words[OFF_NS] = time.monotonic_ns()

    if act == "enter":
        before = steps.push(record)
    elif act == "leave":
        steps.pop(before)
    elif act == "snapshot":
        record.snapshot()
    else:
        record.close()

    assert region.words[OFF_NS] == 0
    assert steps.read_cell() == {"enter": record.value, "leave": 0}.get(act, cell)
    if act != "leave":
        steps.pop(before)


def test_work_that_outlives_its_record_is_never_published_again(region: Any, steps: Any) -> None:
    record = region.open()
    seen = []

    async def inner() -> None:
        await suspend()
        seen.append(steps.read_cell())

    step = record.step(inner())
    step.send(None)
    found = ledger(record.close())
    finish(step)

    assert (found.detached, seen) == (1, [0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork: POSIX")
def test_a_forked_child_forgets_its_parents_region_and_has_its_own(steps: Any) -> None:
    parents = Region(steps)
    record, busy = parents.open(), parents.open()
    worker = Worker(steps, busy)
    steps.push(record)

    child = os.fork()
    if not child:
        status = 1
        try:
            before = bytes(parents.memory)
            parents.real.forget()
            own = Region(steps)
            inner = own.open()
            finish(inner.step(suspend()))
            steps.pop(None)
            gc.collect()
            ledger(inner.close())
            ledger(record.close())
            status = 0 if bytes(parents.memory) == before and steps.current() is None else 2
        finally:
            os._exit(status)
    steps.pop(None)
    worker.end()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ledger(record.close())
    parents.real.unbind()


# ---- ledger ----


def test_a_ledger_sums_with_tasks_threads_and_nested_records(region: Any, steps: Any) -> None:
    def in_thread(record: Any) -> None:
        previous = steps.push(record)
        time.sleep(0.001)
        steps.pop(previous)

    async def nested() -> None:
        await asyncio.sleep(0.001)
        hold_the_loop(0.001)

    async def child(record: Any) -> None:
        await asyncio.sleep(0)
        hold_the_loop(0.0005)
        ledger(record.mark())
        await asyncio.sleep(0.001)

    async def request(record: Any, ends: list[Any]) -> None:
        inner = region.open()
        children = (record.step(child(record)) for _ in range(3))
        await asyncio.gather(
            *map(asyncio.ensure_future, children),
            asyncio.to_thread(in_thread, record),
            inner.step(nested()),
        )
        finish(inner.step(asyncio.sleep(0)))
        await inner.step(nested())
        ledger(record.mark())
        ends.append(ledger(inner.close()))

    async def main() -> list[Any]:
        ends: list[Any] = []
        records = [region.open() for _ in range(16)]
        running = [asyncio.ensure_future(r.step(request(r, ends))) for r in records]
        await asyncio.sleep(0)
        for record in records:
            ledger(record.snapshot())
        await asyncio.gather(*running)
        return ends + [ledger(record.close()) for record in records]

    found = asyncio.run(main())

    assert len(found) == 32
    assert all(end.detached == 0 for end in found)
    for outer in found[16:]:
        assert outer.run_ns >= 1.5 * MS
        assert outer.nested_ns >= MS
        assert outer.thread_ns >= MS
        assert outer.threads == 1


def test_blocks_from_elsewhere_are_true_up_to_their_moment(region: Any, steps: Any) -> None:
    record = region.open()
    blocks: list[Any] = []

    def look() -> None:
        thread = threading.Thread(target=lambda: blocks.append(ledger(record.snapshot())))
        thread.start()
        thread.join()

    async def inner() -> None:
        hold_the_loop(0.002)
        look()
        await suspend()

    look()
    step = record.step(inner())
    step.send(None)
    time.sleep(0.002)
    look()
    step.close()
    fresh, inside, between = blocks

    assert (fresh.end_ns - fresh.start_ns, fresh.steps) == (0, 0)
    assert inside.run_ns >= 2 * MS
    assert inside.loop_block_max_ns >= 2 * MS
    assert inside.gap_ns == 0
    assert between.gap_ns >= 2 * MS
    assert between.in_flight == 1


def test_every_ledger_sums_while_threads_share_records(region: Any, steps: Any) -> None:
    records = [region.open() for _ in range(4)]
    failures: list[BaseException] = []

    async def inner(choose: random.Random) -> None:
        for _ in range(choose.randint(0, 3)):
            await suspend(choose.choice([None, 1]))

    def work(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(300):
                mine, other = choose.choice(records), choose.choice(records)
                previous = steps.push(mine)
                finish(other.step(inner(choose)))
                assert steps.current() is mine
                block = choose.choice(records).snapshot()
                if steps.__name__ == NAMES["c"]:  # only there are borders atomic
                    ledger(block)
                steps.pop(previous)
                assert steps.read_cell() == 0
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    region.real.sampler = lambda value, now_ns: time.sleep(0)  # lets others in at each border
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        region.real.sampler = None

    assert failures == []
    for record in records:
        found = ledger(record.close())
        assert (found.threads, found.in_flight) == (3, 0)


def test_steps_are_activations_of_the_home_thread(region: Any, steps: Any) -> None:
    record = region.open()

    async def inner() -> None:
        await record.step(suspend())
        await suspend()

    finish(record.step(inner()))
    found = ledger(record.close())

    assert found.steps == 3
    assert found.loop_block_max_ns <= found.run_ns


def test_the_longest_step_is_kept(region: Any) -> None:
    record = region.open()

    async def inner() -> None:
        await suspend()
        hold_the_loop(0.004)
        await suspend()

    finish(record.step(inner()))
    found = ledger(record.close())

    assert 4 * MS <= found.loop_block_max_ns <= found.run_ns
    assert found.nested_ns == 0


# ---- memory ----


def test_records_and_steps_are_freed_by_counting_alone(region: Any, steps: Any) -> None:
    gc.collect()
    gc.disable()
    try:
        record = region.open()

        async def inner() -> None:
            await suspend()

        step = record.step(inner())
        watched = [weakref.ref(thing) for thing in (record, step, step.cr_frame and record)]
        step.send(None)
        with contextlib.suppress(StopIteration):
            step.send(None)
        record.close()
        del step, record

        assert [watch() for watch in watched] == [None] * 3
    finally:
        gc.enable()


def test_a_cycle_through_a_coroutine_and_its_record_is_collected(region: Any) -> None:
    class Marker:
        pass

    def make(started: bool) -> tuple[weakref.ref[Any], weakref.ref[Any]]:
        marker = Marker()
        record = region.open()

        async def inner(own: list[Any], marker: Marker) -> None:
            await suspend()

        own: list[Any] = []
        step = record.step(inner(own, marker))
        own.append(step)
        record.info = step
        if started:
            step.send(None)
        return weakref.ref(record), weakref.ref(marker)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of them is never awaited
        watched = [*make(started=True), *make(started=False)]
        gc.collect()

    assert [watch() for watch in watched] == [None] * 4
    assert region.real.slots_open == 0


def test_many_requests_leave_nothing_behind(region: Any, steps: Any) -> None:
    sentinel = object()

    async def inner(thing: object, end: Callable[[], object]) -> object:
        await suspend(thing)
        return end()

    def fail() -> object:
        raise KeyError

    def request() -> None:
        for end in (lambda: sentinel, lambda: (sentinel,), lambda: KeyError(sentinel), fail):
            record = region.open()
            record.info = sentinel
            step = record.step(inner(sentinel, end))
            step.send(None)
            previous = steps.push(record)
            with contextlib.suppress(KeyError):
                finish(step)
            steps.pop(previous)
            record.mark()
            record.close()
        thrown = region.open().step(inner(sentinel, fail))
        thrown.send(None)
        with contextlib.suppress(KeyError):
            thrown.throw(KeyError(sentinel))
        thrown = region.open().step(inner(sentinel, fail))
        thrown.send(None)
        thrown.close()

    def references() -> list[int]:
        gc.collect()
        return [
            sys.getrefcount(thing) for thing in (sentinel, region.real, steps.Step, steps.Record)
        ]

    request()
    before = references()
    for _ in range(200):
        request()

    assert references() == before
    assert region.real.slots_open == 0


def test_threads_that_come_and_go_leave_nothing_behind(steps: Any) -> None:
    region = Region(steps)
    region.register = None  # type: ignore[assignment] - bound by hand
    real = region.real
    record = real.open()

    def work() -> None:
        real.bind(3)
        steps.pop(steps.push(record))

    def run(count: int) -> int:
        for _ in range(count):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        gc.collect()
        return sys.getrefcount(real)

    before = run(5)

    assert run(50) == before
    assert ledger(record.close()).threads == 54


# ---- choice ----


@pytest.mark.parametrize(("pure", "expected"), [("1", "python"), ("0", "c")])
def test_the_environment_can_ask_for_the_twin(pure: str, expected: str) -> None:
    if expected == "c":
        pytest.importorskip(NAMES["c"], reason="_step is not built")
    source = "from kerneltrace_core.requests import engine; print(engine.IMPLEMENTATION)"
    environment = {
        **os.environ,
        "KERNELTRACE_PURE_PYTHON": pure,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    chosen = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=True
    )

    assert chosen.stdout.split() == [expected]


def test_both_implementations_have_one_interface() -> None:
    c = pytest.importorskip(NAMES["c"], reason="_step is not built")
    python = importlib.import_module(NAMES["python"])

    for name in python.__all__:
        ours, theirs = getattr(c, name), getattr(python, name)
        if isinstance(ours, type):
            public = {attribute for attribute in dir(theirs) if not attribute.startswith("_")}
            region = Region(python).real if name == "Region" else None
            public |= {a for a in vars(region) if not a.startswith("_")} if region else set()
            assert public == {a for a in dir(ours) if not a.startswith("_")}, name


# ---- the difference of two blocks ----------------------------------------------------------------


def test_a_difference_is_word_by_word_but_for_those_that_are_kept(steps: Any) -> None:
    before, after = struct.pack("<5Q", 5, 5, 5, 0, 1), struct.pack("<5Q", 9, 9, 4, 2**64 - 1, 1)

    told = steps.difference(before, after, bytes([0, 1, 0, 0, 0]))

    assert struct.unpack("<5Q", told) == (4, 9, 4, 2**64 - 1, 0)


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [(bytes(16), bytes(8), bytes(2)), (bytes(8), bytes(16), bytes(2)), (bytes(8), bytes(8), b"")],
)
def test_blocks_of_two_sizes_have_no_difference(
    steps: Any, before: bytes, after: bytes, kept: bytes
) -> None:
    with pytest.raises(ValueError, match="not of one size"):
        steps.difference(before, after, kept)
