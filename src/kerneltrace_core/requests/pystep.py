"""For which request does this thread work: ``_native/_step.c`` in Python, fallback and oracle.

Unlike there, another thread may run in the middle of a border: a block that is read meanwhile
from elsewhere can be off by that border. Final blocks are as exact as the extension's.
The modules below follow its headers: threads (cells, borders), coroutine, reading, record,
region, exchange.
"""

from __future__ import annotations

from kerneltrace_core.requests.pycoroutine import Step
from kerneltrace_core.requests.pyexchange import Exchange
from kerneltrace_core.requests.pyreading import Reading, difference
from kerneltrace_core.requests.pyrecord import Record
from kerneltrace_core.requests.pyregion import Region
from kerneltrace_core.requests.pythreads import CELL, this_thread

__all__ = [
    "Exchange",
    "Reading",
    "Record",
    "Region",
    "Step",
    "cell_address",
    "current",
    "difference",
    "pop",
    "push",
    "read_cell",
]


def push(record: Record | None) -> Record | None:
    """Let this thread work for a record (None: nobody); return the owner before."""
    if record is not None and type(record) is not Record:
        raise TypeError(f"change owner: {record!r} is neither a Record nor None")
    thread = this_thread()
    visit = thread.enter(record, None)
    return thread.owner if visit is None else visit[1]


def pop(previous: Record | None) -> None:
    """Restore the owner that ``push()`` returned."""
    if previous is not None and type(previous) is not Record:
        raise TypeError(f"change owner: {previous!r} is neither a Record nor None")
    thread = this_thread()
    if thread.owner is not previous:
        thread.leave(thread.owner, previous)


def current() -> Record | None:
    """Return the record this thread works for."""
    return this_thread().owner


def read_cell() -> int:
    """Return the value of this thread's cell."""
    thread = this_thread()
    return thread.words[thread.base + CELL]


def cell_address() -> int:
    """Return the address of this thread's cell; 0: private."""
    thread = this_thread()
    if thread.region is None or thread.words is thread.hidden:
        return 0
    return thread.region._address + 8 * thread.base
