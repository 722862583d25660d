"""A coroutine of the twin's: each of its resumptions is a visit to its record."""

from __future__ import annotations

import collections.abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kerneltrace_core.requests.pythreads import this_thread

if TYPE_CHECKING:
    from kerneltrace_core.requests.pyrecord import Record

__all__ = ["Step"]


class Step:
    """A coroutine that runs as a record. Made by ``Record.step()``."""

    __slots__ = ("__weakref__", "_coro", "_live", "_queued", "_record")

    def __init__(self, record: Record, coro: Any) -> None:
        self._record = record
        self._coro = coro
        self._queued = False
        self._live = True
        record._live += 1

    def _drive(self, method: Callable[..., Any], *args: Any, closing: bool = False) -> Any:
        thread = this_thread()
        record = self._record
        visit = thread.enter(record, self._coro)
        if self._queued:
            self._queued = False
            record._queued -= 1
        yielded = False
        try:
            result = method(*args)
            yielded = not closing
            return result
        finally:
            if yielded is not self._live:
                # Not only downwards: an error such as "already executing" ends nothing.
                self._live = yielded
                # A branch or a call within the sum would let another thread in, and lose its.
                change = 1 if yielded else -1
                record._live += change
            if yielded and result is None and not self._queued:
                self._queued = True
                record._queued += 1
            if visit is not None:
                thread.leave(*visit)

    def __await__(self) -> Step:
        return self

    def __iter__(self) -> Step:
        return self

    def __next__(self) -> Any:
        return self._drive(self._coro.send, None)

    def send(self, value: Any) -> Any:
        """Resume the coroutine with a value, as its record."""
        return self._drive(self._coro.send, value)

    def throw(self, *args: Any) -> Any:
        """Throw into the coroutine, as its record."""
        return self._drive(self._coro.throw, *args)

    def close(self) -> Any:
        """Close the coroutine, as its record."""
        return self._drive(self._coro.close, closing=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_coro"), name)

    def __repr__(self) -> str:
        return repr(self._coro)

    def __del__(self) -> None:
        self._record._live -= self._live
        self._record._queued -= self._queued


collections.abc.Coroutine.register(Step)
