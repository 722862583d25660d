"""Consumer: one reader's share of a ring, from the frames it wants to the batch it gets next."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kerneltrace_core.ring.frames import keep
from kerneltrace_core.ring.protocol import CHUNK_BYTES, Layout, Strided
from kerneltrace_core.session.overflow import Batch, Queue
from kerneltrace_core.session.waiting import Waiter, checkpoint

if TYPE_CHECKING:
    from kerneltrace_core.events.discriminate import Keep
    from kerneltrace_core.events.engine import Selector
    from kerneltrace_core.session.hub import Hub

__all__ = ["Consumer", "ConsumerCounts"]

# One look at the ring without the interpreter's lock: a close need not wait longer.
SPIN_SLICE_US = 500


@dataclass
class ConsumerCounts:
    """What became of the records that were drained while a consumer was there.

    records = delivered + waiting + dropped + abandoned + other + malformed, exactly.

    ``delivered``: handed to the reader. ``waiting``: in the queue now. ``dropped``: there was no
    space (overflow). ``abandoned``: taken from the ring, but the reader was closed before it
    asked. ``other``: of another type. ``malformed``: of this type, but not of its size.
    """

    records: int = 0
    delivered: int = 0
    waiting: int = 0
    dropped: int = 0
    abandoned: int = 0
    other: int = 0
    malformed: int = 0


class Consumer:
    """Wait for batches of one type (``selector``; None: of every record). Made by a hub.

    One thread at a time is served, or the tasks of one event loop; ``close`` may come from any
    thread. Nothing is drained on its behalf while nobody asks it, unless the hub has a pump.
    """

    def __init__(
        self,
        hub: Hub,
        selector: Selector | None,
        queue: Queue,
        waiter: Waiter,
        only: Keep | None,
    ) -> None:
        self.hub = hub
        self.selector = selector
        self.queue = queue
        self.waiter = waiter
        self.only = only
        self.failure: Exception | None = None  # of `only`, a user's function
        self.asleep = 0  # how many sleep now: one thread, or tasks of one event loop
        self.closed = False
        self.left = False  # the hub has added its counts to its own
        self.counts = ConsumerCounts()
        self.turn = threading.RLock()
        self._suspended = False
        self.exact = selector is not None and bool(selector.exact)
        self.layout = None
        if selector is not None:
            self.layout = Layout(
                selector.size + (selector.padding if selector.exact else 0),
                selector.tag_offset,
                selector.tag_size,
                tuple(selector.tags),
            )

    # ---- the hub's side ---------------------------------------------------------------

    def offer(self, frames: bytes, records: int, counted: tuple[int, int, int]) -> None:
        """Take what it wants of frames; ``counted``: wanted, of other types, malformed.

        They are all that was drained, so many records, or what its function has kept of them.
        """
        matching, other, malformed = counted
        counts = self.counts
        counts.records += records
        counts.other += other
        counts.malformed += malformed
        if matching:
            if self.layout is not None and matching * (self.layout.size + 8) < len(frames) // 2:
                # Else a queue of few records would hold on to the memory of many others.
                frames = keep(frames, self.layout, self.exact)
            self.queue.put(frames, matching)
        if self.asleep and (matching or self.failure is not None):
            self.waiter.wake()

    def settle(self) -> ConsumerCounts:
        """Return its counts as they are now."""
        self.counts.waiting = self.queue.records
        self.counts.dropped = self.queue.dropped
        return self.counts

    # ---- the reader's side --------------------------------------------------------------

    def next_batch(self, timeout: float | None = None) -> Batch | None:
        """Return the next batch, sleeping until there is one.

        None when nothing came for ``timeout`` seconds, and at the end: after ``close``, and when
        the session is closed and the queue empty. Raises RingError if the ring cannot be read,
        ClosedError in a forked child, and what a function that tells records apart has raised.
        """
        self.hub.check()
        with self.turn:
            search = _Search(self, timeout)
            while (pause := search.step()) is not None:
                if pause and not self._spin():
                    self._sleep(pause)
        return search.batch

    async def next_batch_async(self, timeout: float | None = None) -> Batch | None:
        """Do as ``next_batch``, on asyncio (uvloop too) or trio (anyio on either)."""
        self.hub.check()
        search = _Search(self, timeout)
        # At every second batch at the latest the other tasks get their turn, also under a flood;
        # before anything is taken, so that nothing is lost when this is cancelled.
        if self._suspended:
            self._suspended = False
        else:
            self._suspended = True
            await checkpoint()
        while (pause := search.step()) is not None:
            self._suspended = True
            if pause:
                await self._sleep_async(pause)
            else:
                await checkpoint()
        return search.batch

    def _sleep(self, pause: float) -> None:
        self.asleep += 1
        try:
            # Between the look before and the sleep somebody may have put something.
            if not (self.queue.records or self.closed or self.hub.ended):
                self.waiter.wait(None if pause == math.inf else pause)
        finally:
            self.asleep -= 1

    async def _sleep_async(self, pause: float) -> None:
        self.asleep += 1
        try:
            if not (self.queue.records or self.closed or self.hub.ended):
                await self.waiter.wait_async(None if pause == math.inf else pause)
        except BaseException:
            # Cancelled, perhaps just when it was woken: let another one look.
            self.hub.wake_others(self)
            raise
        finally:
            self.asleep -= 1

    def _spin(self) -> bool:
        left = self.hub.spin_us
        while left > 0 and not (self.queue.records or self.closed or self.hub.ended):
            if self.hub.spin(min(left, SPIN_SLICE_US)):
                return True
            left -= SPIN_SLICE_US
        return False

    def take_strided(self, limit_records: int) -> Strided | None:
        """Take records straight from the ring, if nobody else reads it; None if not possible."""
        return self.hub.pull_strided(self, limit_records)

    def close(self) -> int:
        """End: wake the reader, and leave the hub. Returns how many records were abandoned.

        May be repeated, and come from any thread.
        """
        if self.hub.inherited:
            self.abandon()
            return 0
        self.closed = True
        self.waiter.close()
        # Whoever sleeps has its turn; it has just been woken.
        with self.turn:
            abandoned = self.queue.clear()
            self.hub.abandoned(self, abandoned, 0)
        # The others may sleep before a full ring, which it was that nobody was to drain.
        self.hub.has_space()
        return abandoned

    def hand_back(self, records: int) -> None:
        """Count records as abandoned that were delivered, but thrown away unread."""
        if self.hub.inherited:
            return  # nobody counts there, and a thread of the parent's may have the turn
        with self.turn:
            self.hub.abandoned(self, 0, records)

    def abandon(self) -> None:
        """In a forked child: give up its copies."""
        self.closed = True
        self.waiter.abandon()

    def __del__(self) -> None:
        if hasattr(self, "turn") and not self.closed:
            self.close()


class _Search:
    """The way from an empty queue to a batch, the same for threads and tasks."""

    def __init__(self, consumer: Consumer, timeout: float | None) -> None:
        self.batch: Batch | None = None
        self._consumer = consumer
        self._timeout = timeout
        self._deadline = math.inf
        self._pulls = 0

    def step(self) -> float | None:
        """Look for a batch; return how long to sleep before the next step, None when done."""
        with self._consumer.turn:
            return self._step()

    def _step(self) -> float | None:
        consumer, hub = self._consumer, self._consumer.hub
        # First: what came before the end is still delivered.
        ended = hub.ended
        if consumer.queue.records:
            self.batch = consumer.queue.take()
        if self.batch is not None:
            consumer.counts.delivered += self.batch[2]
            hub.has_space()
            return None
        if consumer.failure is not None:
            failure, consumer.failure = consumer.failure, None
            raise failure
        if consumer.closed or ended:
            hub.raise_failure()
            return None
        if hub.alone(consumer):
            moved, self.batch = hub.take_alone(consumer)
            if self.batch is not None:
                return None
        else:
            moved = hub.pull(consumer)
        left = self._left()
        if moved:
            # A ring full of other types is gone through once, however short the timeout.
            once = self._pulls * CHUNK_BYTES >= hub.size_bytes
            self._pulls += 1
            return 0 if left > 0 or not once or consumer.queue.records else None
        return left if left > 0 else None

    def _left(self) -> float:
        if self._timeout is None:
            return math.inf
        now = time.monotonic()
        if self._deadline == math.inf:
            self._deadline = now + self._timeout
        return self._deadline - now
