"""When a sleeping coroutine was due: read from asyncio.sleep's own timer, or not known."""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import pytest

from kerneltrace_core.requests.readiness import DEPTH_MAX, ready_at

pytestmark = pytest.mark.unit

DELAY = 0.25


def asked(make: Callable[[], Any]) -> tuple[int, int]:
    """Suspend a coroutine once on a running loop; return (what we say, when the timer is due)."""

    async def main() -> tuple[int, int]:
        coroutine = make()
        due = asyncio.get_running_loop().time() + DELAY
        waited = coroutine.send(None)
        said = ready_at(coroutine)
        if isinstance(waited, asyncio.Future):
            waited._asyncio_future_blocking = False
        coroutine.close()
        return said, int(due * 1e9)

    return asyncio.run(main())


async def sleeping() -> None:
    await asyncio.sleep(DELAY)


async def deeper() -> None:
    await sleeping()


@types.coroutine
def generator_based() -> Generator[Any, None, None]:
    yield from deeper()


async def by_generator() -> None:
    await generator_based()


async def waiting_for_a_future() -> None:
    await asyncio.get_running_loop().create_future()


async def yielding() -> None:
    await asyncio.sleep(0)


async def tower(height: int) -> None:
    if height:
        await tower(height - 1)
    else:
        await asyncio.sleep(DELAY)


class Custom:
    """Awaitable with an iterator of its own: the chain cannot be followed."""

    def __await__(self) -> Custom:
        return self

    def __iter__(self) -> Custom:
        return self

    def __next__(self) -> None:
        return None


async def by_custom_awaitable() -> None:
    await Custom()  # type: ignore[misc]


@pytest.mark.parametrize("make", [sleeping, deeper, by_generator, lambda: tower(20)])
def test_a_sleeper_is_ready_when_its_timer_is_due(make: Callable[[], Awaitable[None]]) -> None:
    said, due = asked(make)

    # The timer is made a moment after we looked at the clock.
    assert 0 <= said - due < 50_000_000


@pytest.mark.parametrize(
    "make", [waiting_for_a_future, yielding, by_custom_awaitable, lambda: tower(DEPTH_MAX + 5)]
)
def test_what_does_not_sleep_is_not_known(make: Callable[[], Awaitable[None]]) -> None:
    said, _ = asked(make)

    assert said == 0


@pytest.mark.parametrize("thing", [None, 5, object(), sleeping, iter(())])
def test_what_is_no_coroutine_is_not_known(thing: object) -> None:
    assert ready_at(thing) == 0


def test_a_coroutine_that_has_not_begun_or_has_ended_is_not_known() -> None:
    fresh = asyncio.sleep(DELAY)
    assert ready_at(fresh) == 0
    fresh.close()

    assert ready_at(fresh) == 0


def test_a_timer_on_the_way_of_an_async_generator_is_found() -> None:
    async def ticks() -> AsyncIterator[int]:
        await asyncio.sleep(DELAY)
        yield 1

    async def consuming() -> None:
        async for _ in ticks():
            pass

    said, due = asked(consuming)

    # The awaitable of __anext__ hides its generator from those who look: not known is right too.
    assert said == 0 or 0 <= said - due < 50_000_000


def test_the_clock_is_the_monotonic_one() -> None:
    said, _ = asked(sleeping)

    assert abs(said - time.monotonic_ns() - DELAY * 1e9) < 1e9
