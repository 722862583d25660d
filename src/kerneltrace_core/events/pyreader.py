"""The iterator over typed events: frames in, one event at a time out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Generic, TypeVar, final

from kerneltrace_core.errors import OptionError
from kerneltrace_core.events.pyevent import KernelEvent
from kerneltrace_core.events.pyframes import MATCH, Selector, records

__all__ = ["Batch", "Reader"]

E = TypeVar("E")  # declared by kernel_event(), which need not derive from KernelEvent
Batch = tuple[bytes, int, int]  # frames, matching records to skip, matching records to deliver


@final
class Reader(Generic[E]):
    """Iterate over the events of one type, in ``for`` and in ``async for``.

    When its frames are used up it calls ``refill()``, or awaits ``arefill()``: each returns
    (frames, skip, take), or None, which ends this iteration; the next one asks again. What they
    raise passes. Of malformed frames the rest is dropped (OptionError).

    Several threads and tasks may share one: each event goes to one of them, none is lost.
    ``refill`` and ``arefill`` are then called by several at the same time.
    """

    def __init__(
        self,
        cls: type[E],
        selector: Selector,
        refill: Callable[[], Batch | None],
        arefill: Callable[[], Awaitable[Batch | None]],
    ) -> None:
        event_class: Any = cls
        if not (isinstance(event_class, type) and issubclass(event_class, KernelEvent)):
            raise TypeError(f"read events: {cls!r} is not an event class")
        if type(selector) is not Selector:
            raise TypeError(f"read events: {selector!r} is not a Selector")
        size, exact = event_class._layout()
        if selector.size < size:
            raise OptionError(
                f"read events: records of {selector.size} bytes are too short for {cls.__name__}, "
                f"which has {size}"
            )
        self._cls: Any = cls
        self._selector, self._refill, self._arefill = selector, refill, arefill
        self._keep = size if exact else None
        self._batches: deque[_Unread] = deque()
        self._delivered = 0
        self._lock = threading.Lock()

    @property
    def delivered(self) -> int:
        """How many events it has returned."""
        return self._delivered

    @property
    def unread(self) -> int:
        """How many events its frames still hold."""
        with self._lock:
            return sum(batch.take for batch in self._batches)

    def discard(self) -> int:
        """Drop the frames in hand; return how many events they still held."""
        with self._lock:
            unread = sum(batch.take for batch in self._batches)
            self._batches.clear()
            return unread

    def __iter__(self) -> Reader[E]:
        return self

    def __next__(self) -> E:
        while True:
            event = self._pop()
            if event is not None:
                return event
            batch = self._refill()
            if batch is not None:
                self._adopt(batch)
            elif (event := self._pop()) is not None:  # another thread was given more meanwhile
                return event
            else:
                raise StopIteration

    def __aiter__(self) -> Reader[E]:
        return self

    async def __anext__(self) -> E:
        while True:
            event = self._pop()
            if event is not None:
                return event
            batch = await self._arefill()
            if batch is not None:
                self._adopt(batch)
            elif (event := self._pop()) is not None:  # another task was given more meanwhile
                return event
            else:
                raise StopAsyncIteration

    def _adopt(self, batch: Any) -> None:
        if not (isinstance(batch, tuple) and len(batch) == 3 and isinstance(batch[0], bytes)):
            raise TypeError(f"read events: refill returned {type(batch).__name__}, not a batch")
        frames, skip, take = batch
        if not (isinstance(skip, int) and isinstance(take, int)):
            raise TypeError("read events: refill returned a batch without counts")
        if skip < 0 or take < 0:
            raise OptionError(f"read events: cannot skip {skip} and take {take}")
        self._batches.append(_Unread(frames, skip, take))

    def _pop(self) -> E | None:
        with self._lock:
            return self._next_matching()

    def _next_matching(self) -> E | None:
        while self._batches:
            batch = self._batches[0]
            try:
                while batch.take and (record := next(batch.records, None)):
                    at, length, origin = record
                    if self._selector.judge(batch.frames, at, length) != MATCH:
                        continue
                    if batch.skip:
                        batch.skip -= 1
                        continue
                    batch.take -= 1
                    self._delivered += 1
                    end = at + (length if self._keep is None else self._keep)
                    event: E = self._cls._make(batch.frames[at:end], origin)
                    return event
            except OptionError:
                self._batches.popleft()
                raise
            self._batches.popleft()
        return None


class _Unread:
    """A batch that is not yet used up."""

    __slots__ = ("frames", "records", "skip", "take")

    def __init__(self, frames: bytes, skip: int, take: int) -> None:
        self.frames, self.skip, self.take = frames, skip, take
        self.records: Iterator[tuple[int, int, int]] = records(frames)
