"""Exchange and Reading: how a response begins and ends, and when its numbers are frozen."""

from __future__ import annotations

import asyncio
import collections.abc
import ctypes
import gc
import importlib
import time
import weakref
from collections import UserDict
from collections.abc import Awaitable, Generator
from typing import Any

import pytest

THREADS, SLOTS, SLOT_BYTES = 4, 8, 128
SLOTS_OFFSET = THREADS * 64
END_NS, LEDGER_WORD = 1, SLOT_BYTES // 8
NAMES = {"c": "kerneltrace_core._native._step", "python": "kerneltrace_core.requests.pystep"}
START = {"type": "http.response.start", "status": 201, "headers": []}
LAST = {"type": "http.response.body", "body": b"x"}
MORE = {"type": "http.response.body", "body": b"x", "more_body": True}


@pytest.fixture(params=["c", "python"])
def steps(request: pytest.FixtureRequest) -> Any:
    """Return one implementation's module."""
    if request.param == "c":
        return pytest.importorskip(NAMES["c"], reason="_step is not built")
    return importlib.import_module(NAMES["python"])


@pytest.fixture
def reading(steps: Any) -> Any:
    """Return the reading of an open record, in plain memory."""
    memory = bytearray(SLOTS_OFFSET + SLOTS * SLOT_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = steps.Region(
        memory, address, THREADS, SLOTS, SLOTS_OFFSET, SLOT_BYTES, lambda: region.bind(0)
    )
    yield steps.Reading(region.open(), "measures")
    region.unbind()


class Sent:
    """A server's send: it notes the messages, and takes its time for each."""

    def __init__(self, turns: int = 0, error: Exception | None = None) -> None:
        self.messages: list[Any] = []
        self.turns = turns
        self.error = error

    async def __call__(self, message: Any) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.messages.append(message)


def test_messages_pass_as_they_are_and_the_status_is_noted(steps: Any, reading: Any) -> None:
    sent = Sent()
    exchange = steps.Exchange(reading, sent, None)
    assert exchange.status_code is None

    async def main() -> None:
        for message in (START, MORE, LAST):
            await exchange.send(message)

    asyncio.run(main())

    assert [id(message) for message in sent.messages] == [id(START), id(MORE), id(LAST)]
    assert exchange.status_code == 201


def test_the_coroutine_of_any_but_the_last_message_is_the_servers_own(
    steps: Any, reading: Any
) -> None:
    made: list[Any] = []

    def send(message: Any) -> Any:
        made.append(Sent()(message))
        return made[-1]

    exchange = steps.Exchange(reading, send, None)

    given = [exchange.send(message) for message in (START, MORE, {"type": "http.other"})]

    assert [id(each) for each in given] == [id(each) for each in made]
    for each in made:
        each.close()


@pytest.mark.parametrize("turns", [0, 3])
@pytest.mark.parametrize(
    "message",
    [
        LAST,
        {**LAST, "more_body": False},
        {"type": "http.response.pathsend", "path": "/x"},
        {"type": "http.response.zerocopysend", "file": 3},
        UserDict(LAST),
        {"type": "".join(["http.", "response.body"])},  # equal, and not the same object
    ],
    ids=["body", "false", "pathsend", "zerocopysend", "mapping", "made"],
)
def test_the_last_message_freezes_the_reading_once_it_is_sent(
    steps: Any, reading: Any, message: Any, turns: int
) -> None:
    sent = Sent(turns)
    exchange = steps.Exchange(reading, sent, None)

    async def main() -> None:
        sending = exchange.send(message)
        assert isinstance(sending, collections.abc.Coroutine)
        assert reading._block is None
        await sending

    asyncio.run(main())

    assert sent.messages == [message]
    assert reading._block is not None
    assert reading._whole is None


@pytest.mark.parametrize("message", [START, MORE, {"type": "http.response.push"}, UserDict(MORE)])
def test_no_other_message_freezes_it(steps: Any, reading: Any, message: Any) -> None:
    exchange = steps.Exchange(reading, Sent(), None)

    async def main() -> None:
        await exchange.send(message)

    asyncio.run(main())

    assert reading._block is None


def test_a_last_message_that_is_not_sent_freezes_nothing(steps: Any, reading: Any) -> None:
    exchange = steps.Exchange(reading, Sent(error=OSError("gone")), None)

    async def main() -> None:
        await exchange.send(LAST)

    with pytest.raises(OSError, match="gone"):
        asyncio.run(main())
    assert reading._block is None


def test_a_send_that_is_cancelled_freezes_nothing_and_one_that_survives_it_does(
    steps: Any, reading: Any
) -> None:
    async def stubborn(message: Any) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if message.get("gives_in"):
                raise

    exchange = steps.Exchange(reading, stubborn, None)

    async def main(message: Any) -> None:
        task = asyncio.ensure_future(exchange.send(message))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main({**LAST, "gives_in": True}))
    assert reading._block is None
    asyncio.run(main(LAST))
    assert reading._block is not None


def test_the_response_ends_when_the_last_message_is_sent_and_not_before_or_after(
    steps: Any, reading: Any
) -> None:
    async def slow(message: Any) -> None:
        await asyncio.sleep(0.02)

    exchange = steps.Exchange(reading, slow, None)
    times: list[int] = []

    async def main() -> None:
        times.append(time.monotonic_ns())
        await exchange.send(LAST)
        times.append(time.monotonic_ns())
        await asyncio.sleep(0.01)

    asyncio.run(reading.record.step(main()))

    block = memoryview(reading._block).cast("Q")
    end_ns = block[LEDGER_WORD + END_NS]
    assert times[0] + 20_000_000 <= end_ns <= times[1]


class Thing:
    """What can be awaited and is no coroutine."""

    def __await__(self) -> Generator[Any, Any, str]:
        yield from asyncio.sleep(0).__await__()
        return "sent"


@pytest.mark.parametrize("kind", ["future", "object"])
def test_a_send_may_return_anything_that_can_be_awaited(
    steps: Any, reading: Any, kind: str
) -> None:
    def send(message: Any) -> Awaitable[Any]:
        if kind == "object":
            return Thing()
        future = asyncio.get_running_loop().create_future()
        future.set_result("sent")
        return future

    exchange = steps.Exchange(reading, send, None)

    async def main() -> Any:
        return await exchange.send(LAST)

    assert asyncio.run(main()) == "sent"
    assert reading._block is not None


def test_a_step_that_sends_is_none_of_the_applications(steps: Any, reading: Any) -> None:
    record, exchange = reading.record, None
    counted: list[int] = []

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        counted.append(memoryview(record.snapshot()).cast("Q")[LEDGER_WORD + 14])

    exchange = steps.Exchange(reading, send, None)

    async def app() -> None:
        await exchange.send(START)
        await exchange.send(LAST)

    asyncio.run(record.step(app()))

    assert counted == [1, 1]  # steps under way: the application's alone


def test_what_begins_the_response_may_be_replaced(steps: Any, reading: Any) -> None:
    sent = Sent()
    exchange = steps.Exchange(reading, sent, lambda message: {**message, "status": 418})

    async def main() -> None:
        await exchange.send(START)
        await exchange.send(LAST)

    asyncio.run(main())

    assert [message.get("status") for message in sent.messages] == [418, None]
    assert exchange.status_code == 201  # the application's


@pytest.mark.parametrize("message", [{}, {"type": "http.response.start"}])
def test_a_message_without_what_it_must_have_raises_what_a_dict_does(
    steps: Any, reading: Any, message: dict[str, Any]
) -> None:
    with pytest.raises(KeyError):
        steps.Exchange(reading, Sent(), None).send(message)


def test_what_a_replacement_raises_is_the_senders_error(steps: Any, reading: Any) -> None:
    def refuse(message: Any) -> Any:
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError, match="no"):
        steps.Exchange(reading, Sent(), refuse).send(START)


def test_an_exchange_is_made_of_a_reading_alone(steps: Any) -> None:
    with pytest.raises(TypeError, match="is not a Reading"):
        steps.Exchange(object(), Sent(), None)


def test_an_exchange_in_a_circle_is_freed(steps: Any, reading: Any) -> None:
    class Holder:
        """A server's connection: its send knows it, and it knows what the application has."""

        async def send(self, message: Any) -> None:
            pass

    holder: Any = Holder()
    holder.exchange = steps.Exchange(reading, holder.send, None)
    gone = weakref.ref(holder)

    del holder
    gc.collect()

    assert gone() is None


# ---- readings ----


def test_a_reading_is_frozen_by_its_first_mark_and_ended_by_finish(reading: Any) -> None:
    record = reading.record
    reading.mark()
    first = reading._block
    reading.mark()

    reading.finish()
    reading.finish()

    assert reading._block is first
    assert reading._whole is not None
    assert reading._whole is not first
    assert reading.record is None
    assert record.value == 0


def test_without_a_mark_the_end_is_all_there_is(reading: Any) -> None:
    reading.finish()

    assert reading._block is reading._whole


def test_a_record_that_was_closed_behind_its_back_is_told(reading: Any) -> None:
    reading.record.close()

    with pytest.raises(ValueError, match="closed"):
        reading.finish()
    with pytest.raises(ValueError, match="closed"):
        reading.mark()


def test_a_reading_may_be_subclassed_and_freed_in_a_circle(steps: Any, reading: Any) -> None:
    class Stats(steps.Reading):
        __slots__ = ("more",)

    stats = Stats(reading.record, "measures")
    stats.more = stats
    gone = weakref.ref(stats)
    assert (stats._measures, stats._phase) == ("measures", "response")

    del stats
    gc.collect()

    assert gone() is None


def test_a_reading_wants_two_arguments(steps: Any) -> None:
    with pytest.raises(TypeError):
        steps.Reading(None)
