"""A record of the twin's: its slot, and its ledger, which always sums to its time."""

from __future__ import annotations

import struct
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from kerneltrace_core.requests.layout import DISK_READS, DISK_WRITES, NET_TX_BYTES, TCP_RETRANSMITS
from kerneltrace_core.requests.pycoroutine import Step
from kerneltrace_core.requests.pythreads import (
    OFF_NS,
    POLL_NS,
    POLL_SLEEP_NS,
    Thread,
    this_thread,
)

if TYPE_CHECKING:
    from kerneltrace_core.requests.pyregion import Region

__all__ = ["Record"]

FLAG_NO_SLOT = 1  # all slots were taken: no kernel counters
FLAG_UNSEEN = 2  # some work was done by a thread that the kernel does not watch
LEDGER = struct.Struct("<16Q")


class Record:
    """What one request costs. Made by ``Region.open()``."""

    __slots__ = (
        "__weakref__",
        "_active",
        "_closed",
        "_depth",
        "_entered_ns",
        "_entered_run_ns",
        "_flags",
        "_gap_ns",
        "_helpers",
        "_home",
        "_left_ns",
        "_live",
        "_loop_block_max_ns",
        "_loop_wait_max_ns",
        "_loop_wait_min_ns",
        "_nested_ns",
        "_queued",
        "_region",
        "_run_ns",
        "_start_ns",
        "_steps",
        "_thread_ns",
        "_value",
        "info",
    )

    def __init__(self, region: Region, value: int) -> None:
        self.info: Any = None
        self._region = region
        self._value = value
        self._closed = False
        self._flags = 0 if value else FLAG_NO_SLOT
        self._live = self._queued = self._depth = self._home = 0
        self._entered_ns = self._entered_run_ns = self._left_ns = 0
        self._start_ns = self._steps = 0
        self._run_ns = self._nested_ns = self._gap_ns = self._thread_ns = 0
        self._loop_wait_min_ns = self._loop_wait_max_ns = self._loop_block_max_ns = 0
        self._active: list[Thread] = []
        self._helpers: set[int] = set()

    @property
    def value(self) -> int:
        """``slot | generation << 32``; 0 once closed, or when there was no slot."""
        return self._value

    @property
    def region(self) -> Region:
        """The region that made it."""
        return self._region

    def step(self, coro: Any) -> Step:
        """Wrap a coroutine: each of its steps runs as this record."""
        if not hasattr(coro, "send"):
            raise TypeError(f"make step: {coro!r} is not a coroutine")
        return Step(self, coro)

    def _begin_visit(self, thread: Thread, now: int) -> None:
        if thread.region is not self._region or thread.words is thread.hidden:
            self._flags |= FLAG_UNSEEN
        if not self._home:
            self._home = thread.serial
            self._start_ns = self._left_ns = now
        if self._home != thread.serial:
            self._helpers.add(thread.serial)
            return
        if not self._depth:
            self._steps += 1
            self._gap_ns += now - self._left_ns
            self._entered_ns = now
            self._entered_run_ns = self._run_ns
        self._depth += 1

    def _add_loop_wait(self, thread: Thread, coro: object, now: int) -> bool:
        """Bound the time for which this was ready while the loop did other things.

        It cannot have become ready before the last poll that slept began to return, and it
        was ready when the last poll of all returned. Return whether the region was asked.
        """
        gap = now - self._left_ns
        asked = False
        if self._queued or gap <= 0:
            low = high = max(gap, 0)
        else:
            low, high = self._bounds(thread, now, gap)
            region = self._region
            # With several steps it cannot be told which one's readiness ended the gap.
            if high - low > region.doubt_ns and coro is not None and self._live == 1:
                ready = region._ask_ready_at(coro)
                asked = True
                if ready:
                    low = high = min(high, max(low, now - ready))
        self._loop_wait_min_ns += low
        self._loop_wait_max_ns += high
        return asked

    def _bounds(self, thread: Thread, now: int, gap: int) -> tuple[int, int]:
        # Without min() and max(), which cost more than all the rest.
        high = now - thread.words[thread.base + POLL_SLEEP_NS]
        if high > gap:
            high = gap
        elif high < 0:
            high = 0
        poll_ns = thread.words[thread.base + POLL_NS]
        if not poll_ns or now <= poll_ns:
            return 0, high
        low = now - poll_ns
        return (low if low < high else high), high

    def _block(self, final: bool) -> bytes:
        region = self._region
        thread = this_thread()
        thread.be_seen()
        # What a border would have told the sampler; it may even close the record.
        if region.sampler is not None and thread.owner is self:
            thread.sample(region.sampler, monotonic_ns())
        if self._closed:
            raise ValueError("read record: it was closed before")
        if self._value and not region._forgotten:
            if final:
                region._retire(self._value)
            slot = region._slot(self._value & 0xFFFFFFFF).tobytes()
        else:
            slot = bytes(region._slot_bytes)
        now = monotonic_ns()
        run, nested, gap = self._run_ns, self._nested_ns, self._gap_ns
        thread_ns, in_flight, block_max = self._thread_ns, self._live, self._loop_block_max_ns
        for thread in self._active:
            if not thread.threads_bank:
                run += now - thread.since_ns
                continue
            # The kernel charges time off CPU when it ends: then it will be late.
            off = thread.words[thread.base + OFF_NS]
            thread_ns += max((min(off, now) if off else now) - thread.since_ns, 0)
            in_flight += 1
        if self._depth:
            stay = now - self._entered_ns
            nested += stay - (run - self._entered_run_ns)
            block_max = max(block_max, stay)
        elif self._home:
            gap += now - self._left_ns
        # Borders are not atomic here: its own thread may have crossed one since ``now``.
        return slot + LEDGER.pack(
            self._start_ns if self._home else now,
            now,
            max(run, 0),
            max(nested, 0),
            max(gap, 0),
            self._loop_wait_min_ns,
            self._loop_wait_max_ns,
            block_max,
            self._steps,
            thread_ns,
            len(self._helpers),
            in_flight if final else 0,
            self._flags,
            self._value,
            in_flight,
            0,
        )

    def mark(self) -> bytes:
        """Return a block of this moment."""
        return self._block(final=False)

    snapshot = mark

    def close(self) -> bytes:
        """Return the final block and give the slot back. Raises ValueError the second time."""
        block = self._block(final=True)
        if self._value:
            # Only then can the kernel still be adding to the slot.
            suspect = self._live or self._active or self._depth or self._helpers
            if suspect or any(block[8 * DISK_READS : 8 * DISK_WRITES + 8]):
                self._region._give(self._value, block)
            elif any(block[8 * NET_TX_BYTES : 8 * NET_TX_BYTES + 8]):
                # And then to this word alone.
                (sent,) = struct.unpack_from("<Q", block, 8 * TCP_RETRANSMITS)
                self._region._give(self._value, None, sent)
            else:
                self._region._give(self._value, None)
        self._closed = True
        self._value = 0
        return block

    def __del__(self) -> None:
        if self._value:  # never closed: nobody read the counters, all of it is late
            if not self._region._forgotten:
                self._region._retire(self._value)
            self._region._give(self._value, b"")
