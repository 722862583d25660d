"""For which request does this thread work: ``_native/_step.c`` in Python, fallback and oracle.

Unlike there, another thread may run in the middle of a border: a block that is read meanwhile
from elsewhere can be off by that border. Final blocks are as exact as the extension's.
"""

from __future__ import annotations

import collections.abc
import itertools
import struct
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

__all__ = ["Record", "Region", "Step", "cell_address", "current", "pop", "push", "read_cell"]

# Words of a thread's entry and of a slot, and the constants of _step.c.
CELL, POLL_NS, POLL_SLEEP_NS, OFF_NS, THREAD_WORDS = 0, 1, 2, 3, 8
NET_TX_BYTES, DISK_WRITES, SLOT_WORDS_MIN = 4, 6, 7
BANK = 1 << 31
U64 = (1 << 64) - 1
SLOT_FIRST = 2
REST_SLOTS = 16
FLAG_NO_SLOT = 1
FLAG_UNSEEN = 2
LEDGER = struct.Struct("<16Q")

_serials = itertools.count(1)
_local = threading.local()


class _Thread:
    """One OS thread: its cell, and the record it works for since the last border."""

    __slots__ = (
        "base",
        "hidden",
        "owner",
        "region",
        "registering",
        "serial",
        "since_ns",
        "threads_bank",
        "words",
    )

    def __init__(self) -> None:
        self.serial = next(_serials)
        self.region: Region | None = None
        self.hidden = memoryview(bytearray(8 * THREAD_WORDS)).cast("Q")
        self.words = self.hidden
        self.base = 0
        self.owner: Record | None = None
        self.since_ns = 0
        self.threads_bank = False
        self.registering = False

    def publish(self, owner: Record | None, threads_bank: bool) -> None:
        """Store who is worked for; a closed record, or another region's, never is."""
        value = 0
        if owner is not None and owner.region is self.region and owner._value:
            value = owner._value | BANK if threads_bank else owner._value
        self.words[self.base + CELL] = value

    def bind(self, region: Region | None, index: int) -> None:
        self.words[self.base + CELL] = 0
        if self.region is not None:
            self.region._threads.discard(self)
        self.region = region
        self.words, self.base = self.hidden, 0
        if region is not None:
            region._threads.add(self)
            if index >= 0 and not region._forgotten:
                self.words, self.base = region._words, index * THREAD_WORDS
        self.publish(self.owner, self.threads_bank)

    def join(self, region: Region) -> None:
        """Let the region register this thread; whatever comes of it, ask only once."""
        if not self.registering:
            self.registering = True
            try:
                region._register()
            except BaseException as error:  # noqa: BLE001 - has no caller to go to
                _Unraisable(error)
            finally:
                self.registering = False
        if self.region is not region:
            self.bind(region, -1)

    def change_owner(self, owner: Record | None, now: int) -> None:
        """Charge the owner that ends here, and begin with the next one."""
        before = self.owner
        if before is not None:
            if self.threads_bank:
                before._thread_ns += now - self.since_ns
            else:
                before._run_ns += now - self.since_ns
            before._active.remove(self)
        self.owner = owner
        self.since_ns = now
        self.threads_bank = False
        if owner is not None:
            self.threads_bank = owner._home != self.serial
            owner._active.append(self)

    def sample(self, sampler: Callable[[int, int], None], now: int) -> None:
        try:
            sampler(self.words[self.base + CELL], now)
        except BaseException as error:  # noqa: BLE001 - has no caller to go to
            _Unraisable(error)

    def enter(self, record: Record | None, coro: object) -> tuple[Record | None, Any] | None:
        """Begin to work for ``record``; return what ``leave`` takes, None if nothing changed."""
        if record is not None:
            region = record._region
            if self.region is not region and not record._closed and not region._forgotten:
                self.join(region)
            if record._closed:
                record = None
        previous = self.owner
        if previous is record:
            return None
        now = monotonic_ns()
        if self.region is not None and self.region.sampler is not None:
            self.sample(self.region.sampler, now)
        if record is not None and record._home == self.serial and not record._depth:
            record._add_loop_wait(self, coro, now)
        # What was called out of here may have been here, too.
        if now < self.since_ns:
            now = self.since_ns
        if record is not None:
            record._begin_visit(self, now)
        self.change_owner(record, now)
        self.publish(record, self.threads_bank)
        return record, previous

    def leave(self, entered: Record | None, previous: Record | None) -> None:
        if self.region is not None and self.region.sampler is not None:
            self.sample(self.region.sampler, monotonic_ns())
        self.restore(entered, previous)

    def restore(self, entered: Record | None, previous: Record | None) -> None:
        self.publish(previous, previous is not None and previous._home != self.serial)
        now = monotonic_ns()
        self.change_owner(previous, now)
        if entered is not None and entered._home == self.serial and entered._depth:
            if entered._depth == 1:
                stay = now - entered._entered_ns
                entered._nested_ns += stay - (entered._run_ns - entered._entered_run_ns)
                if stay > entered._loop_block_max_ns:
                    entered._loop_block_max_ns = stay
                entered._left_ns = now
            entered._depth -= 1


class _ThreadEnd:
    """Dies with its thread's locals, and takes the thread out of what refers to it."""

    __slots__ = ("thread",)

    def __init__(self, thread: _Thread) -> None:
        self.thread = thread

    def __del__(self) -> None:
        thread = self.thread
        if thread.owner is not None:
            thread.restore(thread.owner, None)
        thread.bind(None, -1)


class _Unraisable:
    """Report an error that has no caller to go to; the interpreter does so for finalizers only."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def _this_thread() -> _Thread:
    try:
        thread: _Thread = _local.thread
    except AttributeError:
        thread = _local.thread = _Thread()
        _local.end = _ThreadEnd(thread)
    return thread


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
        thread = _this_thread()
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
                record._live += 1 if yielded else -1
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
        self._active: list[_Thread] = []
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

    def _begin_visit(self, thread: _Thread, now: int) -> None:
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

    def _add_loop_wait(self, thread: _Thread, coro: object, now: int) -> None:
        """Bound the time for which this was ready while the loop did other things.

        It cannot have become ready before the last poll that slept began to return, and it
        was ready when the last poll of all returned.
        """
        gap = now - self._left_ns
        if self._queued or gap <= 0:
            low = high = max(gap, 0)
        else:
            low, high = self._bounds(thread, now, gap)
            region = self._region
            # With several steps it cannot be told which one's readiness ended the gap.
            if high - low > region.doubt_ns and coro is not None and self._live == 1:
                ready = region._ask_ready_at(coro)
                if ready:
                    low = high = min(high, max(low, now - ready))
        self._loop_wait_min_ns += low
        self._loop_wait_max_ns += high

    def _bounds(self, thread: _Thread, now: int, gap: int) -> tuple[int, int]:
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
        if self._closed:
            raise ValueError("read record: it was closed before")
        region = self._region
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
        return slot + LEDGER.pack(
            self._start_ns if self._home else now,
            now,
            run,
            nested,
            gap,
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
            if suspect or any(block[8 * NET_TX_BYTES : 8 * DISK_WRITES + 8]):
                self._region._give(self._value, block)
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


class Region:
    """The memory shared with the BPF programs: thread entries and slots."""

    def __init__(
        self,
        memory: Any,
        address: int,
        threads: int,
        slots: int,
        slots_offset: int,
        slot_bytes: int,
        register: Callable[[], None],
    ) -> None:
        view = memoryview(memory)
        if view.readonly:
            raise ValueError("open region: the memory is read-only")
        if (
            threads < 1
            or not SLOT_FIRST <= slots <= 1 << 24
            or not 8 * SLOT_WORDS_MIN <= slot_bytes <= 1 << 24
            or slot_bytes % 8
            or slots_offset % 8
            or address % 8
            or not address
            or threads * 8 * THREAD_WORDS > slots_offset
            or slots_offset + slots * slot_bytes > view.nbytes
        ):
            raise ValueError(
                f"open region: {threads} threads and {slots} slots of {slot_bytes} bytes "
                f"at {slots_offset} do not fit {view.nbytes} bytes"
            )
        self.sampler: Callable[[int, int], None] | None = None
        self.ready_at: Callable[[object], int] | None = None
        self.doubt_ns = 1_000_000
        self._address = address
        self._words = view.cast("B")[: view.nbytes & ~7].cast("Q")
        self._register = register
        self._thread_count = threads
        self._slots = slots
        self._slots_word = slots_offset // 8
        self._slot_bytes = slot_bytes
        self._zeros = memoryview(bytes(slot_bytes)).cast("Q")
        self._forgotten = False
        self._threads: set[_Thread] = set()
        self._next_fresh = SLOT_FIRST
        self._rest: deque[int] = deque()
        # By slot: its final block, or b"" if that was never read.
        self._copies: dict[int, bytes] = {}
        self._late = [0] * (slot_bytes // 8)
        self._open = 0
        self._exhausted = 0

    @property
    def slots_open(self) -> int:
        """Slots in use."""
        return self._open

    @property
    def slots_exhausted(self) -> int:
        """How often ``open()`` found no slot."""
        return self._exhausted

    def bind(self, index: int) -> None:
        """Give this thread entry ``index``; -1: a private one that nobody sees."""
        if not -1 <= index < self._thread_count:
            last = self._thread_count - 1
            raise ValueError(f"bind thread: no entry {index} (-1 to {last})")
        _this_thread().bind(self, index)

    def unbind(self) -> None:
        """Clear this thread's cell and leave it."""
        thread = _this_thread()
        if thread.region is self:
            thread.bind(None, -1)

    def bound(self) -> bool:
        """Tell whether this thread is bound here."""
        return _this_thread().region is self

    def open(self) -> Record:
        """Take a slot and return its Record, which has value 0 if all were taken."""
        slot = self._take()
        if not slot:
            return Record(self, 0)
        words = self._slot(slot)
        generation = ((words[0] & 0xFFFFFFFF) + 1) & 0xFFFFFFFF or 1
        words[:] = self._zeros
        words[0] = generation
        self._open += 1
        return Record(self, slot | generation << 32)

    def late(self) -> bytes:
        """Return what closed slots got after their copy."""
        sums = list(self._late)
        if not self._forgotten:
            for slot in self._copies:
                self._add_residual(slot, sums)
        return struct.pack(f"<{len(sums)}Q", *sums)

    def forget(self) -> None:
        """Never touch the memory again."""
        self._forgotten = True
        for thread in self._threads:
            thread.words, thread.base = thread.hidden, 0
        self._words.release()

    def _ask_ready_at(self, coro: object) -> int:
        ready = 0
        if self.ready_at is not None:
            try:
                ready = self.ready_at(coro)
                if not 0 <= ready <= U64:
                    raise OverflowError(f"ready_at: {ready} is not a time")
            except BaseException as error:  # noqa: BLE001 - has no caller to go to
                ready = 0
                _Unraisable(error)
        return ready

    def _slot(self, slot: int) -> memoryview[int]:
        size = self._slot_bytes // 8
        begin = self._slots_word + slot * size
        return self._words[begin : begin + size]

    def _take(self) -> int:
        """Reuse slots first-in first-out, but out of a small set that stays in the caches."""
        if self._forgotten:
            return 0
        if len(self._rest) <= REST_SLOTS and self._next_fresh < self._slots:
            self._next_fresh += 1
            return self._next_fresh - 1
        if not self._rest:
            self._exhausted += 1
            return 0
        slot = self._rest.popleft()
        if slot in self._copies:
            self._add_residual(slot, self._late)
            del self._copies[slot]
        return slot

    def _give(self, value: int, copy: bytes | None) -> None:
        slot = value & 0xFFFFFFFF
        self._rest.append(slot)
        self._open -= 1
        if copy is not None:
            self._copies[slot] = copy

    def _retire(self, value: int) -> None:
        """Make the slot's generation fit no cell that is published now."""
        words = self._slot(value & 0xFFFFFFFF)
        words[0] = ((value >> 32) + 1) & 0xFFFFFFFF or 1

    def _add_residual(self, slot: int, sums: list[int]) -> None:
        copy = self._copies[slot] or bytes(self._slot_bytes)
        copied = memoryview(copy)[: self._slot_bytes].cast("Q")
        now = self._slot(slot)
        if now[1:] == copied[1:]:
            return
        for word in range(1, len(sums)):
            sums[word] = (sums[word] + now[word] - copied[word]) & U64


def push(record: Record | None) -> Record | None:
    """Let this thread work for a record (None: nobody); return the owner before."""
    if record is not None and type(record) is not Record:
        raise TypeError(f"change owner: {record!r} is neither a Record nor None")
    thread = _this_thread()
    visit = thread.enter(record, None)
    return thread.owner if visit is None else visit[1]


def pop(previous: Record | None) -> None:
    """Restore the owner that ``push()`` returned."""
    if previous is not None and type(previous) is not Record:
        raise TypeError(f"change owner: {previous!r} is neither a Record nor None")
    thread = _this_thread()
    if thread.owner is not previous:
        thread.leave(thread.owner, previous)


def current() -> Record | None:
    """Return the record this thread works for."""
    return _this_thread().owner


def read_cell() -> int:
    """Return the value of this thread's cell."""
    thread = _this_thread()
    return thread.words[thread.base + CELL]


def cell_address() -> int:
    """Return the address of this thread's cell; 0: private."""
    thread = _this_thread()
    if thread.region is None or thread.words is thread.hidden:
        return 0
    return thread.region._address + 8 * thread.base
