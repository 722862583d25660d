"""Threads of the twin: each one's cell, and the record it works for since the last border."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerneltrace_core.requests.pyrecord import Record
    from kerneltrace_core.requests.pyregion import Region

__all__ = ["Thread", "Unraisable", "this_thread"]

# Words of a thread's entry.
CELL, POLL_NS, POLL_SLEEP_NS, OFF_NS, THREAD_WORDS = 0, 1, 2, 3, 8
THREADS_BANK = 1 << 31  # of a cell

_serials = itertools.count(1)
_local = threading.local()


class Thread:
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
            value = owner._value | THREADS_BANK if threads_bank else owner._value
        self.words[self.base + CELL] = value

    def be_seen(self) -> None:
        """Let the kernel look at this thread, should it take it for one that is off its CPU.

        It does so at a system call, and charges the time off CPU until then. The call is nobody's.
        """
        words, base = self.words, self.base
        if not words[base + OFF_NS]:
            return
        cell = words[base + CELL]
        words[base + CELL] = 0
        os.getegid()
        words[base + OFF_NS] = 0
        words[base + CELL] = cell

    def bind(self, region: Region | None, index: int) -> None:
        """Move to an entry of the region; -1 or no region: a private cell."""
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
                Unraisable(error)
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
        """Tell the sampler whose time ends now."""
        try:
            sampler(self.words[self.base + CELL], now)
        except BaseException as error:  # noqa: BLE001 - has no caller to go to
            Unraisable(error)

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
        self.be_seen()
        now = monotonic_ns()
        sampler = None if self.region is None else self.region.sampler
        if sampler is not None:
            self.sample(sampler, now)
        if record is not None and record._home == self.serial and not record._depth:
            asked = record._add_loop_wait(self, coro, now)
            # That took time. What a sampler was told, though, ends when it was told.
            if asked and sampler is None:
                now = monotonic_ns()
        # What was called out of here may have been here, too.
        if now < self.since_ns:
            now = self.since_ns
        if record is not None:
            record._begin_visit(self, now)
        self.change_owner(record, now)
        self.publish(record, self.threads_bank)
        return record, previous

    def leave(self, entered: Record | None, previous: Record | None) -> None:
        """End the visit that ``enter`` began."""
        if self.region is not None and self.region.sampler is not None:
            self.sample(self.region.sampler, monotonic_ns())
        self.restore(entered, previous)

    def restore(self, entered: Record | None, previous: Record | None) -> None:
        """Work for the previous owner again: the store comes before the clock."""
        self.be_seen()
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


class ThreadEnd:
    """Dies with its thread's locals, and takes the thread out of what refers to it."""

    __slots__ = ("thread",)

    def __init__(self, thread: Thread) -> None:
        self.thread = thread

    def __del__(self) -> None:
        thread = self.thread
        if thread.owner is not None:
            thread.restore(thread.owner, None)
        thread.bind(None, -1)


class Unraisable:
    """Report an error that has no caller to go to; the interpreter does so for finalizers only."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def this_thread() -> Thread:
    """Return the state of the thread that calls."""
    try:
        thread: Thread = _local.thread
    except AttributeError:
        thread = _local.thread = Thread()
        _local.end = ThreadEnd(thread)
    return thread
