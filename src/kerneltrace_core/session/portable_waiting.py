"""What a consumer of a fake ring sleeps on where there is no epoll: no descriptor at all."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kerneltrace_core.session.waiting import LONGEST_SECONDS, running_asyncio, running_trio

__all__ = ["EventWaiter"]


class EventWaiter:
    """Sleep until woken. Any system, any event loop of asyncio, trio. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._woken = threading.Event()
        self._callbacks: list[Callable[[], object]] = []
        self._closed = False
        self.wakeups = 0

    def wake(self) -> None:
        """End the wait of whoever waits now; if nobody does, the next wait ends at once."""
        with self._lock:
            self._woken.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def wait(self, timeout: float | None) -> None:
        """Sleep at most so many seconds; return at once when closed."""
        self._woken.wait(timeout if timeout is None else min(timeout, LONGEST_SECONDS))
        self._done()

    async def wait_async(self, timeout: float | None) -> None:
        """Do as ``wait``, and let asyncio's or trio's other tasks run meanwhile."""
        trio = running_trio()
        if trio is not None:
            woken = trio.Event()
            token = trio.lowlevel.current_trio_token()
            self._call(lambda: token.run_sync_soon(woken.set))
            with trio.move_on_after(float("inf") if timeout is None else timeout):
                await woken.wait()
        else:
            import asyncio

            loop = running_asyncio()
            event = asyncio.Event()
            self._call(lambda: loop.call_soon_threadsafe(event.set))
            timer = None if timeout is None else loop.call_later(timeout, event.set)
            try:
                await event.wait()
            finally:
                if timer is not None:
                    timer.cancel()
        self._done()

    def _call(self, callback: Callable[[], object]) -> None:
        with self._lock:
            if not self._woken.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def _done(self) -> None:
        with self._lock:
            self.wakeups += 1
            if not self._closed:
                self._woken.clear()

    def close(self) -> None:
        """Wake whoever waits, now and ever after."""
        with self._lock:
            self._closed = True
        self.wake()

    def abandon(self) -> None:
        """In a forked child: forget who waited."""
        self._lock = threading.RLock()
        self._woken = threading.Event()
        self._callbacks = []
        self._closed = True
        self._woken.set()
