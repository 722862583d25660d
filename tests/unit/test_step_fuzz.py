"""Random coroutines under random drivers: a step does what the bare coroutine does."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import os
import random
import struct
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PROGRAMS = int(os.environ.get("KERNELTRACE_FUZZ_PROGRAMS", "3000"))
FIRST_SEED = 20_000
THREADS, SLOTS, SLOT_BYTES = 4, 64, 128
SLOTS_OFFSET = THREADS * 64
NAMES = {"c": "kerneltrace_core._native._step", "python": "kerneltrace_core.requests.pystep"}

Log = list[Any]
Wrap = Callable[[Any], Any]


class Fault(Exception):
    pass


class Base(BaseException):
    pass


@pytest.fixture(params=["c", "python"])
def steps(request: pytest.FixtureRequest) -> Any:
    """Return one implementation's module."""
    if request.param == "c":
        return pytest.importorskip(NAMES["c"], reason="_step is not built")
    return importlib.import_module(NAMES["python"])


@pytest.fixture
def region(steps: Any) -> Iterator[Any]:
    """Return a region in plain memory that this thread is bound to."""
    memory = bytearray(SLOTS_OFFSET + SLOTS * SLOT_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = steps.Region(
        memory, address, THREADS, SLOTS, SLOTS_OFFSET, SLOT_BYTES, lambda: region.bind(0)
    )
    region.bind(0)
    yield region
    region.unbind()


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what finalizers raise: that must be the same, too."""
    seen: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_type.__name__))
    return seen


class Yield:
    """Awaitable that suspends with a value."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __await__(self) -> Any:
        return (yield self.value)


class Program:
    """A coroutine that is decided by its seed alone, and logs all that happens to it."""

    def __init__(self, seed: int, log: Log, cell: Callable[[], int], cells: set[int]) -> None:
        self.random = random.Random(seed)
        self.log = log
        self.cell = cell
        self.cells = cells

    def note(self, *what: object) -> None:
        self.cells.add(self.cell())
        self.log.append(repr(what))

    async def values(self, count: int) -> Any:
        try:
            for index in range(count):
                self.note("generator", index)
                yield await Yield(("generated", index))
        finally:
            self.note("generator ends")
            if self.random.random() < 0.3:
                await Yield("last")

    async def __aenter__(self) -> None:
        self.note("enter")
        await Yield("entering")

    async def __aexit__(self, kind: type | None, error: object, trace: object) -> bool:
        self.note("exit", kind and kind.__name__)
        await Yield("exiting")
        return self.random.random() < 0.3

    async def catch(self) -> object:
        try:
            await Yield(None if self.random.random() < 0.5 else "throw at me")
        except Fault:
            self.note("fault eaten")
            await Yield("after the fault")
        except GeneratorExit:
            self.note("closing")
            if self.random.random() < 0.3:
                return 7
            if self.random.random() < 0.2:
                await Yield("ignoring GeneratorExit")
            raise
        except BaseException as error:
            self.note(type(error).__name__)
            if self.random.random() < 0.5:
                raise Base("instead") from error
            await Yield("again")
        return None

    async def main(self, depth: int = 0) -> object:
        choose = self.random
        for _ in range(choose.randint(0, 4)):
            self.note("operation")
            kind = choose.random()
            if kind < 0.25:
                self.note("got", await Yield(choose.choice([None, 1, "x"])))
            elif kind < 0.4:
                if depth < 4:
                    self.note("returned", await self.main(depth + 1))
            elif kind < 0.55:
                self.note("caught", await self.catch())
            elif kind < 0.65:
                async for value in self.values(choose.randint(0, 3)):
                    self.note(value)
                    if choose.random() < 0.3:
                        break
            elif kind < 0.78:
                async with self:
                    await Yield("inside")
                    if choose.random() < 0.3:
                        raise Fault("inside")
            elif kind < 0.83:
                raise choose.choice([Fault, Base, KeyError, StopAsyncIteration])("own")
            elif kind < 0.85:
                raise StopIteration(3)
            elif kind < 0.92:
                return choose.choice(
                    [None, 1, (1, 2), (), ValueError("a value"), StopIteration(4), KeyError]
                )
            else:
                await asyncio.sleep(0)
        return choose.choice([None, "end", (5,)])

    @types.coroutine
    def generator(self) -> Any:
        """Do the same as a generator-based coroutine."""
        return (yield from self.main().__await__())

    def start(self, seed: int) -> Any:
        return self.generator() if seed % 5 == 0 else self.main()


def describe(error: BaseException) -> tuple[object, ...]:
    """Return all that two equal exceptions have in common."""
    return (
        type(error).__name__,
        repr(error.args),
        type(error.__cause__).__name__,
        type(error.__context__).__name__,
        type(error.__context__ and error.__context__.__context__).__name__,
        error.__suppress_context__,
    )


def drive(seed: int, coroutine: Any) -> Log:
    """Send, throw and close as the seed decides; return everything that came back."""
    choose = random.Random(seed * 7 + 1)

    async def outer() -> object:
        return await coroutine

    # Most of the time as an await expression drives it, sometimes by hand.
    driven = outer() if seed % 3 else coroutine
    came: Log = []
    ended = 0
    for count in range(40):
        kind = choose.random()
        try:
            if kind < (0.9 if count == 0 else 0.3):
                result = driven.send(None)
            elif kind < 0.55:
                result = driven.send(count)
            elif kind < 0.68:
                result = driven.throw(Fault("driver"))
            elif kind < 0.76:
                result = driven.throw(asyncio.CancelledError("cancel"))
            elif kind < 0.80:
                result = driven.throw(Fault)
            elif kind < 0.83:
                result = driven.throw(Fault, Fault("two arguments"))
            elif kind < 0.86:
                result = driven.throw(GeneratorExit())
            elif kind < 0.89:
                result = ("closed", driven.close())
            elif kind < 0.91:
                result = driven.throw(StopIteration(9))
            else:
                result = driven.send(None)
            came.append(repr(result))
        except StopIteration as stop:
            came.append(("returned", repr(stop.value), repr(stop.args)))
            ended += 1
        except BaseException as error:  # noqa: BLE001 - whatever it is, both must raise it
            came.append(("raised", *describe(error)))
            ended += 1
        # A little beyond its end: "cannot reuse already awaited coroutine".
        if ended > 2:
            break
    try:
        came.append(repr(driven.close()))
    except BaseException as error:  # noqa: BLE001
        came.append(("raised", *describe(error)))
    return came


def run_program(
    seed: int, wrap: Wrap, cell: Callable[[], int], unraisable: list[str]
) -> tuple[Log, set[int]]:
    log: Log = []
    cells: set[int] = set()
    unraisable.clear()
    came = drive(seed, wrap(Program(seed, log, cell, cells).start(seed)))
    return [came, log, list(unraisable)], cells


def bare(coroutine: Any) -> Any:
    return coroutine


def check_identity(block: bytes) -> None:
    start, end, run, nested, gap = struct.unpack_from("<5Q", block, SLOT_BYTES)
    assert end - start == run + nested + gap


def test_a_step_answers_every_driver_as_the_bare_coroutine_does(
    steps: Any, region: Any, unraisable: list[str]
) -> None:
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for seed in range(FIRST_SEED, FIRST_SEED + PROGRAMS):
                expected, _ = run_program(seed, bare, steps.read_cell, unraisable)

                record = region.open()
                found, cells = run_program(seed, record.step, steps.read_cell, unraisable)

                assert found == expected, f"seed {seed}"
                # Finalizers of generators left behind run when nobody works for the record.
                assert cells <= {record.value, 0}, f"seed {seed}"
                assert 0 not in cells or "generator ends" in str(found[1]), f"seed {seed}"
                assert steps.read_cell() == 0, f"seed {seed}"
                assert steps.current() is None
                check_identity(record.close())
    finally:
        gc.enable()


class Crowd:
    """Tasks on a real loop that wait for, and cancel, each other by their seed alone."""

    def __init__(self, seed: int, wrap: Wrap, check: Callable[[], None]) -> None:
        self.random = random.Random(seed)
        self.wrap = wrap
        self.check = check
        self.log: Log = []
        self.tasks: list[asyncio.Task[Any]] = []

    def note(self, *what: object) -> None:
        self.check()
        self.log.append(what)

    def spawn(self, name: str, depth: int) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(self.wrap(self.work(name, depth)))
        self.tasks.append(task)
        return task

    async def work(self, name: str, depth: int) -> object:
        choose = self.random
        self.note(name, "begins")
        try:
            for turn in range(choose.randint(1, 4)):
                kind = choose.random()
                self.note(name, turn)
                if kind < 0.3 or depth > 2:
                    await asyncio.sleep(0)
                elif kind < 0.5:
                    self.note(name, "child", repr(await self.spawn(f"{name}.{turn}", depth + 1)))
                elif kind < 0.7:
                    children = [self.spawn(f"{name}.{turn}{side}", depth + 1) for side in "ab"]
                    answers = await asyncio.gather(*children, return_exceptions=kind < 0.6)
                    self.note(name, "both", repr(answers))
                elif kind < 0.8:
                    await asyncio.shield(self.spawn(f"{name}.{turn}s", depth + 1))
                elif kind < 0.9:
                    await asyncio.wait_for(self.spawn(f"{name}.{turn}w", depth + 1), 60)
                else:
                    raise Fault(name)
        except asyncio.CancelledError as error:
            self.note(name, "cancelled", error.args)
            if choose.random() < 0.3:
                return "survived"
            await asyncio.sleep(0)
            raise
        finally:
            self.note(name, "ends")
        return name

    async def main(self) -> Log:
        roots = [self.spawn(name, 0) for name in "ABC"]
        for _ in range(12):
            await asyncio.sleep(0)
            if self.random.random() < 0.4:
                self.random.choice(self.tasks).cancel("by the crowd")
        ends = await asyncio.gather(*roots, return_exceptions=True)
        await asyncio.gather(*self.tasks, return_exceptions=True)
        return [self.log, [describe(e) if isinstance(e, BaseException) else e for e in ends]]


def test_tasks_of_steps_are_scheduled_and_cancelled_as_bare_ones(steps: Any, region: Any) -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + max(PROGRAMS // 10, 1)):
        expected = asyncio.run(Crowd(seed, bare, lambda: None).main())

        record = region.open()
        value = record.value

        def check() -> None:
            assert steps.read_cell() == value  # noqa: B023 - called within this turn only

        found = asyncio.run(Crowd(seed, record.step, check).main())

        assert found == expected, f"seed {seed}"
        assert steps.read_cell() == 0
        block = record.close()
        check_identity(block)
        assert struct.unpack_from("<Q", block, SLOT_BYTES + 8 * 14)[0] == 0  # nothing in flight
