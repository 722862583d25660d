"""What a consumer sleeps on: a descriptor that a ring, or anyone who wakes it, makes readable."""

from __future__ import annotations

import os
import select
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from kerneltrace_core.errors import RingError, UnsupportedError

if TYPE_CHECKING:
    import asyncio

__all__ = ["EpollWaiter", "Waiter", "checkpoint", "new_waiter", "running_asyncio", "running_trio"]

# epoll_wait(2) counts milliseconds in an int. Who waits for longer looks, and waits again.
LONGEST_SECONDS = 86_400.0


class Waiter(Protocol):
    """What consumers sleep on; see EpollWaiter, and EventWaiter for systems without epoll."""

    wakeups: int

    def wake(self) -> None:
        """End the wait of whoever waits now; if nobody does, the next wait ends at once."""

    def wait(self, timeout: float | None) -> None:
        """Sleep at most so many seconds; return at once when closed."""

    async def wait_async(self, timeout: float | None) -> None:
        """Do as ``wait`` on an event loop."""

    def close(self) -> None:
        """Wake whoever waits and give everything back; may be repeated."""

    def abandon(self) -> None:
        """In a forked child: forget everything."""


def new_waiter(ring_fd: int) -> Waiter:
    """Return what this system has. Without epoll there is no real ring, and ring_fd is -1.

    Raises RingError where there is no descriptor left for it.
    """
    if hasattr(select, "epoll") and hasattr(os, "eventfd"):
        try:
            return EpollWaiter(ring_fd)
        except OSError as error:
            raise RingError(
                f"open what a reader waits on: {error.strerror} "
                "(each stream takes two descriptors: raise the limit, ulimit -n, or close streams)",
                errno=error.errno,
            ) from None
    from kerneltrace_core.session.portable_waiting import EventWaiter

    return EventWaiter()


def running_trio() -> Any:
    """Return trio if the caller is one of its tasks, else None. Imports nothing."""
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    try:
        # In guest mode another loop runs in the same thread: only a task of trio's tells.
        trio.lowlevel.current_task()
    except RuntimeError:
        return None
    return trio


def running_asyncio() -> asyncio.AbstractEventLoop:
    """Return asyncio's running loop. Raises UnsupportedError under any other library."""
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UnsupportedError(
            "wait for events: neither asyncio nor trio runs this coroutine "
            "(iterate with `for` on a thread instead)"
        ) from None


async def checkpoint() -> None:
    """Let the other tasks run, on asyncio or trio."""
    trio = running_trio()
    if trio is not None:
        await trio.lowlevel.checkpoint()
    else:
        import asyncio

        running_asyncio()
        await asyncio.sleep(0)


class EpollWaiter:
    """Sleep until the ring has something, or until woken.

    Both descriptors are watched for edges: a ring that somebody else leaves full, or a record
    that is still being written, wakes nobody again and again. So look at the ring before each
    wait. ``wake`` and ``close`` may come from any thread; one thread at a time waits, or tasks
    of one event loop. Linux.
    """

    def __init__(self, ring_fd: int) -> None:
        # Reentrant: a collection of garbage may close a session in the midst of anything.
        self._lock = threading.RLock()
        self._users = 0
        self._closed = False
        self._released = False
        self._futures: list[asyncio.Future[None]] = []
        with ExitStack() as undo:
            self._epoll = select.epoll()
            undo.callback(self._epoll.close)
            self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._event)
            self._epoll.register(self._event, select.EPOLLIN | select.EPOLLET)
            if ring_fd >= 0:
                self._epoll.register(ring_fd, select.EPOLLIN | select.EPOLLET)
            undo.pop_all()
        self.wakeups = 0

    def wake(self) -> None:
        """End the wait of whoever waits now; if nobody does, the next wait ends at once."""
        with self._lock:
            if not self._released:
                os.eventfd_write(self._event, 1)

    def wait(self, timeout: float | None) -> None:
        """Sleep at most so many seconds, or a day; return at once when closed."""
        if not self._enter():
            return
        try:
            self._epoll.poll(timeout if timeout is None else min(timeout, LONGEST_SECONDS))
            self.wakeups += 1
        finally:
            self._leave()

    async def wait_async(self, timeout: float | None) -> None:
        """Do as ``wait``, and let asyncio's or trio's other tasks run meanwhile.

        The descriptor is given to the event loop only for the time of the wait.
        """
        if not self._enter():
            return
        try:
            trio = running_trio()
            if trio is not None:
                await self._wait_trio(trio, timeout)
            else:
                await self._wait_asyncio(running_asyncio(), timeout)
            self.wakeups += 1
            # Take the edge: the event loop saw that there is one, nobody has collected it.
            self._epoll.poll(0)
        finally:
            self._leave()

    async def _wait_trio(self, trio: Any, timeout: float | None) -> None:
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            await trio.lowlevel.wait_readable(self._epoll.fileno())

    async def _wait_asyncio(self, loop: asyncio.AbstractEventLoop, timeout: float | None) -> None:
        future = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, _finish, future)
        self._futures.append(future)
        if len(self._futures) == 1:
            try:
                loop.add_reader(self._epoll.fileno(), self._finish_all)
            except NotImplementedError:
                self._futures.remove(future)
                raise UnsupportedError(
                    f"wait for events: {type(loop).__name__} cannot watch a descriptor "
                    "(iterate with `for` on a thread instead)"
                ) from None
        try:
            await future
        finally:
            self._futures.remove(future)
            if not self._futures:
                loop.remove_reader(self._epoll.fileno())
            if timer is not None:
                timer.cancel()

    def _finish_all(self) -> None:
        for future in self._futures:
            _finish(future)

    def _enter(self) -> bool:
        with self._lock:
            if self._closed:
                return False
            self._users += 1
            return True

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._closed:
                self._release()

    def close(self) -> None:
        """Wake whoever waits and give the descriptors back; may be repeated."""
        with self._lock:
            self._closed = True
            if not self._released:
                os.eventfd_write(self._event, 1)
                self._release()

    def abandon(self) -> None:
        """In a forked child: close its copies, and touch nothing that the parent has, too."""
        self._lock = threading.RLock()
        self._closed = True
        self._users = 0
        self._futures.clear()
        self._release()

    def _release(self) -> None:
        # Whoever waits still needs them, and closes them when it leaves.
        if not self._users and not self._released:
            self._released = True
            self._epoll.close()
            os.close(self._event)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
