"""Hub: drain one ring for all who read it, and count what becomes of every record."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kerneltrace_core.errors import ClosedError, KernelTraceError, RingError
from kerneltrace_core.ring.owner import Owner
from kerneltrace_core.ring.protocol import CHUNK_BYTES, NO_LIMIT, Drained, ReaderProtocol, Strided
from kerneltrace_core.session.consumer import Consumer, ConsumerCounts
from kerneltrace_core.session.overflow import Batch, Queue
from kerneltrace_core.session.pump import Pump
from kerneltrace_core.session.ring_counts import RingCounts
from kerneltrace_core.session.sorting import Sorter
from kerneltrace_core.session.waiting import new_waiter

if TYPE_CHECKING:
    from kerneltrace_core.events.discriminate import Keep
    from kerneltrace_core.events.engine import Selector

__all__ = ["Hub"]

logger = logging.getLogger("kerneltrace")


class Hub:
    """Own a reader, and share what it drains out to consumers. Thread-safe.

    ``pump="inline"``: a consumer that finds its queue empty drains for all of them, and sleeps
    only when the ring is empty; nothing runs while nobody asks, and what nobody takes stays in
    the ring until the kernel counts it as lost. ``pump="thread"``: a daemon thread drains as
    records come. ``known``: selects the tags that the object has; other records are unknown.
    ``spin_us``: how long a thread polls the ring before it sleeps (not tasks of event loops):
    waking an idle CPU takes longer than a poll.

    ``close`` takes what is in the ring then, at most once its size, and wakes everybody: their
    queues are still delivered, then iterations end. In a forked child every use raises
    ClosedError; ``abandon`` closes the child's copies of descriptors. Raises RingError if there
    can be no pump; the reader is closed then, too.
    """

    def __init__(
        self,
        reader: ReaderProtocol,
        *,
        session: str = "session",
        pump: str = "inline",
        spin_us: float = 0,
        known: Selector | None = None,
    ) -> None:
        self.name = reader.name
        self.session = session
        self.spin_us = int(spin_us)
        self.size_bytes = reader.size_bytes
        self.ended = False
        self.failure: BaseException | None = None
        self.counts = RingCounts()
        self._reader = reader
        self._owner = Owner(f"ring {reader.name} of session {session}")
        self._sorter = Sorter(known)
        # Reentrant: a collection of garbage in the midst of a pull may close the session.
        self._lock = threading.RLock()
        self._consumers: list[tuple[weakref.ref[Consumer], Queue, ConsumerCounts]] = []
        self._held = False
        self._warned: set[str] = set()
        self._pump: Pump | None = None
        with ExitStack() as undo:
            undo.callback(reader.close)
            reader.listen(self._arrived)
            undo.callback(reader.listen, None)
            if pump == "thread":
                self._pump = Pump(f"kerneltrace-{session}-{self.name}", reader.fd, self._pump_once)
                undo.callback(self._pump.close)
                self._pump.start()
            undo.pop_all()

    # ---- who reads ------------------------------------------------------------------------

    def subscribe(
        self,
        selector: Selector | None,
        *,
        capacity: int = 65_536,
        overflow: str = "drop_oldest",
        only: Keep | None = None,
    ) -> Consumer:
        """Return a consumer of what is drained from now on; it leaves when it is forgotten.

        ``selector`` None: every record. ``only``: what frames go through before the selector,
        where a function tells types apart. Raises ClosedError; RingError if the ring cannot be
        read; OptionError.
        """
        self.check()
        queue = Queue(capacity, overflow)
        with self._lock:
            if self.ended:
                self.raise_failure()
                raise ClosedError(f"read {self._owner.what}: it is closed")
            self._present()  # so that those who left, and never asked, do not pile up
            waiter = new_waiter(-1 if self._pump else self._reader.fd)
            consumer = Consumer(self, selector, queue, waiter, only)
            self._consumers.append((weakref.ref(consumer), queue, consumer.counts))
        if self._pump is not None:
            self._pump.wake()
        return consumer

    def _present(self) -> list[Consumer]:
        """Return those who still read; what the others left is added up."""
        present = []
        for entry in list(self._consumers):
            ref, queue, counts = entry
            consumer = ref()
            if consumer is not None and not consumer.closed:
                present.append(consumer)
            else:
                # Also what was put after it had closed.
                counts.abandoned += queue.clear()
                self._consumers.remove(entry)
                self.counts.leave(queue, counts)
                if consumer is not None:
                    consumer.left = True
        return present

    def abandoned(self, consumer: Consumer, waiting: int, delivered: int) -> None:
        """Count what a closed consumer had waiting, and what it was given but threw away."""
        with self._lock:
            for counts in (consumer.counts, self.counts) if consumer.left else (consumer.counts,):
                counts.abandoned += waiting + delivered
                counts.delivered -= delivered

    # ---- draining --------------------------------------------------------------------------

    def pull(self, puller: Consumer | None = None) -> bool:
        """Drain once, at most a chunk, and share it out; tell whether anything was there.

        With a pump only the pump's thread drains. Does nothing while a blocking consumer is full.
        """
        if self._pump is not None and not self._pump.is_here:
            return False
        with self._lock:
            if self.ended:
                return False
            consumers = self._present()
            if not consumers:
                # The ring keeps it for the next.
                return False
            limit = self._limit(consumers)
            if limit <= 0:
                return False
            drained = self._drain(limit)
            if drained is None:
                return False
            self._share_out(drained, consumers)
            if drained.more:
                # The kernel wakes nobody for what is left: it was there before.
                for consumer in consumers:
                    if consumer is not puller and consumer.asleep:
                        consumer.waiter.wake()
            return bool(drained.records or drained.discarded or drained.lost)

    def _pump_once(self) -> bool:
        """Do as ``pull``; what it raises ends the ring, for there is nobody else to hear of it."""
        try:
            return self.pull()
        except Exception as error:  # noqa: BLE001 - also a want of memory
            self._fail(error)
            return False

    def _limit(self, consumers: list[Consumer]) -> int:
        """Return how many records the blocking consumers have space for."""
        blocking = [each.queue for each in consumers if each.queue.policy == "block"]
        if not blocking:
            return NO_LIMIT
        # First: who makes space after it was looked at will find that it has to wake us.
        self._held = True
        limit = min(queue.space for queue in blocking)
        self._held = limit <= 0
        return limit

    def alone(self, puller: Consumer) -> bool:
        """Tell whether a consumer is the only one, and takes whole records as they are."""
        consumers = self._consumers
        return (
            self._pump is None
            and len(consumers) == 1
            and puller.selector is not None
            and puller.only is None
            and not puller.queue.records
        )

    def take_alone(self, puller: Consumer) -> tuple[bool, Batch | None]:
        """Drain for the only consumer, past its queue; tell whether anything was there.

        What `pull` does, in the fewest steps: the way from a record to the one who waits for it.
        """
        with self._lock:
            if self.ended or not self.alone(puller):
                return True, None  # look again: things have changed
            drained = self._drain(puller.queue.capacity)
            if drained is None:
                return True, None
            records = drained.records
            if not records:
                return bool(drained.discarded or drained.lost), None
            selector = puller.selector
            if selector is None or selector.count(drained.frames)[0] != records:
                self._share_out(drained, [puller])
                return True, None
            puller.counts.records += records
            puller.counts.delivered += records
            return True, (drained.frames, 0, records)

    def _drain(self, limit_records: int = NO_LIMIT) -> Drained | None:
        begin = time.perf_counter_ns()
        try:
            drained = self._reader.drain(CHUNK_BYTES, limit_records)
        except (KernelTraceError, OSError) as error:
            self._fail(error)
            return None
        self.counts.drained(drained, time.perf_counter_ns() - begin)
        return drained

    def _share_out(self, drained: Drained, consumers: list[Consumer]) -> None:
        if not drained.records:
            return
        sorted_out = self._sorter.sort(drained.frames, drained.records, consumers)
        for consumer, (frames, counted) in zip(consumers, sorted_out.shares, strict=True):
            consumer.offer(frames, drained.records, counted)
        self.counts.unknown += sorted_out.unknown
        self.counts.malformed += sorted_out.malformed
        self.counts.unclaimed += sorted_out.unclaimed
        if sorted_out.unknown:
            self._warn_once("unknown", "whose type tag is none that is known")
        if sorted_out.malformed:
            self._warn_once("malformed", "whose size is not that of their type")
        # One that blocks drops at the end alone, what nobody would have read.
        if any(each.queue.dropped and each.queue.policy != "block" for each in consumers):
            self._warn_of_drops()

    def pull_strided(self, puller: Consumer, limit_records: int) -> Strided | None:
        """Take records of a consumer's type straight from the ring, copied once.

        None where that is not possible: others read as well, its queue is not empty, its records
        have no fixed size, a pump drains, or the reader has no such way.
        """
        self.check()
        if self._pump is not None or puller.only is not None or not puller.exact:
            return None
        layout, selector = puller.layout, puller.selector
        if layout is None or selector is None or layout.size != selector.size:
            return None
        with self._lock:
            if self.ended or puller.queue.records or self._present() != [puller]:
                return None
            begin = time.perf_counter_ns()
            try:
                strided = self._reader.drain_strided(layout, limit_records)
            except (KernelTraceError, OSError) as error:
                self._fail(error)
                return None
            if strided is not None:
                self.counts.drained_strided(strided, time.perf_counter_ns() - begin)
                puller.counts.records += strided.records
                puller.counts.delivered += strided.records
            return strided

    def spin(self, microseconds: int) -> bool:
        """Watch the ring for so long on this CPU; tell whether there is something."""
        if self._pump is not None:
            return False
        try:
            return self._reader.spin(microseconds)
        except ClosedError:
            return False

    def has_space(self) -> None:
        """Go on draining: a consumer whose full queue held it up has taken a batch, or left."""
        if self._held:
            self._held = False
            self._arrived()

    # ---- waking -----------------------------------------------------------------------------

    def _arrived(self) -> None:
        """Something is in a ring that has no descriptor, or may be drained again."""
        if self._pump is not None:
            self._pump.wake()
        else:
            self.wake_others(None)

    def wake_others(self, but: Consumer | None) -> None:
        """Let all look at the ring: who sleeps now, and who is just about to."""
        for ref, _, _ in list(self._consumers):
            consumer = ref()
            if consumer is not None and consumer is not but:
                consumer.waiter.wake()

    # ---- how it goes, how it ends -----------------------------------------------------------

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child."""
        return self._owner.inherited

    def check(self) -> None:
        """Raise ClosedError in a forked child."""
        if self._owner.inherited:
            self._owner.check("read")

    def raise_failure(self) -> None:
        """Raise RingError if the ring could not be read."""
        if self.failure is not None:
            raise RingError(
                f"read ring {self.name}: {str(self.failure) or type(self.failure).__name__}",
                errno=getattr(self.failure, "errno", None),
            ) from self.failure

    def stats(self) -> RingCounts:
        """Return a copy of all counts, of consumers that have left too."""
        self.check()
        with self._lock:
            present = self._present()
            return self.counts.with_present([each.settle() for each in present])

    def _fail(self, error: BaseException) -> None:
        logger.error("ring %s of session %s cannot be read: %s", self.name, self.session, error)
        self.failure = error
        self._end()

    def _end(self) -> None:
        self.ended = True
        if self._pump is not None:
            self._pump.end()
        self.wake_others(None)

    def _warn_once(self, kind: str, which: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(
                "ring %s of session %s has %s records, %s: they are counted and left out",
                self.name,
                self.session,
                kind,
                which,
            )

    def _warn_of_drops(self) -> None:
        if "dropped" not in self._warned:
            self._warned.add("dropped")
            logger.warning(
                "ring %s of session %s has a reader that is slower than its records come: what its "
                'queue has no space for is dropped, and counted (queue_size=, overflow="block")',
                self.name,
                self.session,
            )

    def close(self) -> None:
        """Drain once more, wake everybody, close the reader. May be repeated.

        Bounded under a flood: it takes what is in the ring when it begins, and no more. What a
        blocking consumer has no space for is dropped, and counted.
        """
        if self._owner.inherited:
            self.abandon()
            return
        with self._lock:
            if self._owner.closed:
                return
            self._owner.closed = True
            if not self.ended:
                self._drain_the_rest()
            self._end()
        if self._pump is not None:
            self._pump.close()
        self._reader.listen(None)
        self._reader.close()

    def _drain_the_rest(self) -> None:
        left = self._reader.pending_bytes()
        while left > 0 and not self.ended:
            drained = self._drain()
            if drained is None or not (drained.records or drained.discarded):
                return
            self._share_out(drained, self._present())
            left -= max(len(drained.frames), 8 * drained.discarded)

    def abandon(self) -> None:
        """In a forked child: close its copies of descriptors, and touch nothing else."""
        self.ended = True
        for ref, _, _ in self._consumers:
            consumer = ref()
            if consumer is not None:
                consumer.abandon()
        if self._pump is not None:
            self._pump.abandon()
        self._reader.abandon()
