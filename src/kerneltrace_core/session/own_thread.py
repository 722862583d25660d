"""Run what blocks on a thread of its own, for coroutines of asyncio and trio."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from asyncio import Future

__all__ = ["in_own_thread"]

T = TypeVar("T")


async def in_own_thread(name: str, function: Callable[[], T]) -> T:
    """Return what a function returns, to its end even if the caller is cancelled.

    Not on the loop's threads for such things: all of them may be busy with readers, who wait for
    the very close that would wait for one of them.
    """
    # Not at the top: it takes milliseconds, and a session in a `with` does without.
    import asyncio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio  # which else could drive this coroutine

        # Else a cancelled caller would not even begin to close.
        with trio.CancelScope(shield=True):
            return await trio.to_thread.run_sync(function, limiter=trio.CapacityLimiter(1))
    outcome: Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if outcome.done():
            return  # cancelled with the loop itself
        if error is None:
            outcome.set_result(result)  # type: ignore[arg-type]
        else:
            outcome.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001 - raised to who waits
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=run, name=name)
    try:
        thread.start()
    except RuntimeError:  # no more threads, or the interpreter is about to end
        return function()
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        await asyncio.wait([outcome])
        if not outcome.cancelled():
            outcome.exception()  # looked at: the cancellation is what the caller hears
        raise
    finally:
        if outcome.done():
            thread.join()  # it has nothing more to do
