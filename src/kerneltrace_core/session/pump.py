"""Pump: a daemon thread that drains a ring as records come, for readers who may be away."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kerneltrace_core.errors import RingError
from kerneltrace_core.session.waiting import Waiter, new_waiter

__all__ = ["Pump"]


class Pump:
    """Call ``pull`` as long as it finds something, and sleep until the ring has more."""

    def __init__(self, name: str, ring_fd: int, pull: Callable[[], bool]) -> None:
        self._pull = pull
        self._ended = False
        self._waiter: Waiter = new_waiter(ring_fd)
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; ``pull`` is called on the pump's own thread from now on.

        Raises RingError where there can be no more threads.
        """
        try:
            self.thread.start()
        except RuntimeError as error:
            raise RingError(
                f"start pump thread {self.thread.name}: {error} "
                "(allow more threads, ulimit -u or pids.max of its control group, "
                'or open the session with pump="inline")'
            ) from None

    @property
    def is_here(self) -> bool:
        """Whether the caller runs on the pump's thread."""
        return threading.current_thread() is self.thread

    def _run(self) -> None:
        while not self._ended:
            if not self._pull() and not self._ended:
                self._waiter.wait(None)

    def wake(self) -> None:
        """Let it look at the ring again."""
        self._waiter.wake()

    def end(self) -> None:
        """Let it end, without waiting for it."""
        self._ended = True
        self._waiter.wake()

    def close(self) -> None:
        """Wait until it has ended: one drain at most."""
        self.end()
        if not self.is_here and self.thread.ident is not None:  # else it could not start
            self.thread.join()
        self._waiter.close()

    def abandon(self) -> None:
        """In a forked child, which does not have the thread: give up the descriptors."""
        self._ended = True
        self._waiter.abandon()
