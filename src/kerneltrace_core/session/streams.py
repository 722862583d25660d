"""Streams: what a user iterates over, by ``for`` or ``async for``: events, records, batches."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kerneltrace_core.errors import ClosedError, OptionError
from kerneltrace_core.ring.frames import split
from kerneltrace_core.ring.protocol import CHUNK_BYTES
from kerneltrace_core.session.waiting import checkpoint

if TYPE_CHECKING:
    from kerneltrace_core.btf.layout import StructLayout
    from kerneltrace_core.events.columns import Columns
    from kerneltrace_core.events.engine import Reader, Selector
    from kerneltrace_core.session.consumer import Consumer, ConsumerCounts
    from kerneltrace_core.session.overflow import Batch

__all__ = ["BatchStream", "EventStream", "RawStream", "aprocess", "process"]

T = TypeVar("T")
Self = TypeVar("Self", bound="_Stream")


class _Stream:
    """One consumer's life: open until closed, forgotten, or the session's end.

    Iterating again goes on where the last iteration stopped. Iteration ends when the stream or
    the session is closed (from any thread, at once), or nothing came for ``timeout`` seconds.
    By ``for``, threads that share a stream get each event once; by ``async for``, tasks of one
    event loop: asyncio, uvloop, and anyio on it; under trio one task. A stream is read in one of
    both ways.
    """

    def __init__(self, consumer: Consumer, timeout: float | None) -> None:
        self._consumer = consumer
        self._timeout = timeout

    def _next_batch(self) -> Batch | None:
        return self._consumer.next_batch(self._timeout)

    async def _next_batch_async(self) -> Batch | None:
        return await self._consumer.next_batch_async(self._timeout)

    def _check(self) -> None:
        self._consumer.hub.check()
        if self._consumer.closed:
            raise ClosedError(f"iterate over ring {self._consumer.hub.name}: the stream is closed")

    def counts(self) -> ConsumerCounts:
        """Return what became of the records that were drained since it was made."""
        return self._consumer.settle()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._consumer.closed

    def close(self) -> None:
        """End the iteration, wake who waits in it, and forget what was not yet read.

        May be repeated, and come from any thread.
        """
        self._consumer.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class EventStream(_Stream, Generic[T]):
    """Iterate over typed events. Made by ``Session.events``; see _Stream for its life.

    Each event is an object that owns its bytes. Some 100 ns each, also in ``async for``, where
    it suspends once for each batch.
    """

    def __init__(
        self, consumer: Consumer, cls: type[T], selector: Selector, timeout: float | None = None
    ) -> None:
        from kerneltrace_core.events.engine import Reader

        super().__init__(consumer, timeout)
        # The reader holds on to the consumer, not to this: `for event in session.events(...)`
        # keeps only the reader, and the consumer leaves when that is forgotten.
        made: Any = Reader
        self._reader: Reader[Any] = made(
            cls,
            selector,
            partial(consumer.next_batch, timeout),
            partial(consumer.next_batch_async, timeout),
        )

    def __iter__(self) -> Iterator[T]:
        """Return the one iterator of this stream. Raises ClosedError if that was closed."""
        self._check()
        return self._reader

    def __aiter__(self) -> AsyncIterator[T]:
        """Return the one iterator of this stream. Raises ClosedError if that was closed."""
        self._check()
        return self._reader

    def counts(self) -> ConsumerCounts:
        """Return what became of the records; ``delivered`` are those that were iterated over."""
        counts = self._consumer.settle()
        unread = self._reader.unread
        return replace(counts, delivered=counts.delivered - unread, waiting=counts.waiting + unread)

    def close(self) -> None:
        """End the iteration, wake who waits in it, and forget what was not yet read."""
        super().close()
        self._consumer.hand_back(self._reader.discard())


class RawStream(_Stream):
    """Iterate over the records of a ring as bytes, whatever they are. See _Stream for its life."""

    def __init__(self, consumer: Consumer, timeout: float | None = None) -> None:
        super().__init__(consumer, timeout)
        self._unread: deque[bytes] = deque()

    def __iter__(self) -> Iterator[bytes]:
        self._check()
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._check()
        return self

    def __next__(self) -> bytes:
        while True:
            try:
                return self._unread.popleft()
            except IndexError:
                self._adopt(self._next_batch(), StopIteration)

    async def __anext__(self) -> bytes:
        while True:
            try:
                return self._unread.popleft()
            except IndexError:
                self._adopt(await self._next_batch_async(), StopAsyncIteration)

    def _adopt(self, batch: Batch | None, end: type[Exception]) -> None:
        if batch is None:
            raise end
        frames, skip, take = batch
        self._unread.extend(payload for payload, _ in islice(split(frames), skip, skip + take))
        if self._consumer.closed:  # since this was taken, and perhaps since `close` looked
            self._forget()

    def counts(self) -> ConsumerCounts:
        """Return what became of the records; ``delivered`` are those that were iterated over."""
        counts, unread = self._consumer.settle(), len(self._unread)
        return replace(counts, delivered=counts.delivered - unread, waiting=counts.waiting + unread)

    def close(self) -> None:
        """End the iteration, wake who waits in it, and forget what was not yet read."""
        super().close()
        self._forget()

    def _forget(self) -> None:
        unread = 0
        with suppress(IndexError):
            while True:  # one by one: another thread may read meanwhile
                self._unread.popleft()
                unread += 1
        self._consumer.hand_back(unread)


class BatchStream(_Stream, Generic[T]):
    """Iterate over whole batches of events of one type, as columns. See _Stream for its life.

    A batch is what was there, at most ``size`` events (as many as a CPU's second cache has space
    for, if that is not said); never empty. As long as nobody else reads
    the ring and no other type comes, records are copied once, from the ring into the batch.
    """

    def __init__(
        self,
        consumer: Consumer,
        layout: StructLayout,
        timeout: float | None = None,
        size: int | None = None,
    ) -> None:
        from kerneltrace_core.events.columns import Columns
        from kerneltrace_core.events.engine import pack

        super().__init__(consumer, timeout)
        if not consumer.exact:
            raise OptionError(
                f"read batches of {layout.name}: its records differ in length (use events)"
            )
        self._columns = Columns
        self._pack = pack
        self._layout = layout
        self._size = size or max(CHUNK_BYTES // max(layout.size, 1), 1)
        # What batches that were longer than `size` have left, the oldest first. Whoever removes one
        # has it for itself, so threads need no lock, which a forked child could find taken.
        self._rests: deque[Batch] = deque()

    def __iter__(self) -> Iterator[Columns]:
        self._check()
        return self

    def __aiter__(self) -> AsyncIterator[Columns]:
        self._check()
        return self

    def __next__(self) -> Columns:
        data = self._at_hand()
        if data is None:
            data = self._first_of(self._next_batch(), StopIteration)
        return self._columns(self._layout, data)

    async def __anext__(self) -> Columns:
        # Before anything is taken: nothing is lost if this is cancelled, and others get a turn.
        await checkpoint()
        data = self._at_hand()
        if data is None:
            data = self._first_of(await self._next_batch_async(), StopAsyncIteration)
        return self._columns(self._layout, data)

    def _at_hand(self) -> bytearray | memoryview | None:
        if self._rests:
            try:
                rest = self._rests.popleft()
            except IndexError:  # another thread has it
                pass
            else:
                return self._cut(rest, self._rests.appendleft)
        strided = self._consumer.take_strided(self._size)
        return strided.data if strided is not None and strided.records else None

    def _first_of(self, batch: Batch | None, end: type[Exception]) -> bytearray:
        if batch is None:
            raise end
        return self._cut(batch, self._rests.append)

    def _cut(self, batch: Batch, keep: Callable[[Batch], None]) -> bytearray:
        frames, skip, take = batch
        taken = min(take, self._size)
        if take > taken:
            keep((frames, skip + taken, take - taken))
            if self._consumer.closed:  # since this was taken, and perhaps since `close` looked
                self._forget()
        selector: Any = self._consumer.selector
        return self._pack(frames, selector, skip, taken)

    def counts(self) -> ConsumerCounts:
        """Return what became of the records; ``delivered`` are those in returned batches."""
        counts = self._consumer.settle()
        unread = sum(take for _, _, take in self._rests.copy())
        return replace(counts, delivered=counts.delivered - unread, waiting=counts.waiting + unread)

    def close(self) -> None:
        """End the iteration, wake who waits in it, and forget what was not yet read."""
        super().close()
        self._forget()

    def _forget(self) -> None:
        while self._rests:
            with suppress(IndexError):  # another thread closes it, too
                self._consumer.hand_back(self._rests.popleft()[2])


def process(stream: Iterable[T], callback: Callable[[T], object]) -> int:
    """Call a function with each item of a stream until that ends or it returns False.

    Returns how often it was called. Blocks. What the function raises passes.
    """
    calls = 0
    for item in stream:
        calls += 1
        if callback(item) is False:
            break
    return calls


async def aprocess(
    stream: AsyncIterable[T], callback: Callable[[T], Awaitable[object] | object]
) -> int:
    """Do as ``process`` on an event loop; what the callback returns is awaited if it can be."""
    calls = 0
    async for item in stream:
        calls += 1
        result = callback(item)
        if inspect.isawaitable(result):
            result = await result
        if result is False:
            break
    return calls
