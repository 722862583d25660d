"""Database work: what each request spent on its connection's socket or SQLite file, by alias."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from struct import Struct
from typing import Any, NamedTuple

from django.db import connections
from django.db.backends.signals import connection_created

from kerneltrace_core.requests import layout
from kerneltrace_core.requests.engine import current, read_cell
from kerneltrace_django.current import RequestStats

__all__ = ["DatabaseStats", "DatabaseWork", "connect", "follow", "measure"]

# Waits that are not for a database. A futex is, inside a query, the interpreter's lock on the way
# back; a lock on an SQLite file is waited for by sleeping.
LOCK, PIPE, CHILD = (layout.CAUSES.index(cause) for cause in ("lock", "pipe", "child"))
BANK_BIT = 31

# read, written, received, sent: neighbours in the layout
_BYTES = Struct("<4Q").unpack_from
_BLOCKED = Struct(f"<{len(layout.CAUSES)}Q").unpack_from


class DatabaseStats(NamedTuple):
    """What a request's queries on one database cost; what cannot be measured is None.

    ``queries``: calls of execute and executemany, of BEGIN and savepoints as well. The rest is
    what happened inside them, and inside commit and rollback: time blocked, whatever for but a
    lock between threads; bytes received and sent on sockets; bytes read and written on anything
    else. Not in it: connecting, and rows that are fetched later (SQLite's after the first,
    server-side cursors').
    """

    queries: int = 0
    blocked_ns: int | None = 0
    rx_bytes: int | None = 0
    tx_bytes: int | None = 0
    read_bytes: int | None = 0
    write_bytes: int | None = 0


class DatabaseWork(dict[str, DatabaseStats]):
    """The DatabaseStats of a request by alias. Thread-safe."""

    def __init__(self, stats: RequestStats) -> None:
        super().__init__()
        self._lock = threading.Lock()
        net, files = stats.net_rx_bytes is not None, stats.read_bytes is not None
        known = (True, stats.blocked_ns is not None, net, net, files, files)
        self._zero = DatabaseStats(*(0 if each else None for each in known))  # type: ignore[arg-type]

    def add(self, alias: str, queries: int, before: bytes, after: bytes, bank: int) -> None:
        """Add what lies between two blocks, on a thread of that bank."""
        where = 8 * (layout.BANK + bank * layout.BANK_WORDS + layout.BLOCKED_NS)
        # Written out: it is done for every query.
        blocked_ns = _waited(_BLOCKED(after, where)) - _waited(_BLOCKED(before, where))
        read, written, received, sent = _BYTES(after, layout.READ_BYTES * 8)
        read_0, written_0, received_0, sent_0 = _BYTES(before, layout.READ_BYTES * 8)
        with self._lock:
            total = self.get(alias, self._zero)
            self[alias] = DatabaseStats(
                total[0] + queries,
                None if total[1] is None else total[1] + blocked_ns,
                None if total[2] is None else total[2] + received - received_0,
                None if total[3] is None else total[3] + sent - sent_0,
                None if total[4] is None else total[4] + read - read_0,
                None if total[5] is None else total[5] + written - written_0,
            )


def _waited(causes: tuple[int, ...]) -> int:
    return sum(causes) - causes[LOCK] - causes[PIPE] - causes[CHILD]


def measure(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    """Run a query, and add what the kernel did meanwhile to the request it is made for.

    Queries that run at the same time on other threads of one request share its counters: each
    then counts what happened in all of them.
    """
    with Charged(context["connection"].alias, queries=1):
        return execute(sql, params, many, context)


class Charged:
    """Add what happens inside ``with`` to the request that this thread works for."""

    __slots__ = ("_alias", "_before", "_queries", "_record")

    def __init__(self, alias: str, *, queries: int) -> None:
        self._alias = alias
        self._queries = queries

    def __enter__(self) -> None:
        record = current()
        if record is not None and not isinstance(record.info, RequestStats):
            record = None
        self._record = record
        if record is not None:
            try:
                self._before = record.snapshot()
            except ValueError:  # the request has ended, and this work goes on
                self._record = None

    def __exit__(self, *_error: object) -> None:
        record = self._record
        if record is None:
            return
        try:
            after = record.snapshot()
        except ValueError:
            return
        bank = read_cell() >> BANK_BIT & 1
        _work_of(record.info).add(self._alias, self._queries, self._before, after, bank)


_lock = threading.Lock()
_connected = False


def _work_of(stats: RequestStats) -> DatabaseWork:
    if stats.db is None:
        work = DatabaseWork(stats)
        with _lock:
            if stats.db is None:
                stats.db = work
    found: DatabaseWork = stats.db
    return found


def follow(connection: Any, **_signal: Any) -> None:
    """Measure the queries of a connection, once; a receiver of ``connection_created``.

    As the outermost wrapper, and not through ``execute_wrapper``: connections are made inside
    other people's wrappers, and those take the innermost away when they end.
    """
    if measure not in connection.execute_wrappers:
        connection.execute_wrappers.insert(0, measure)
        # Where a transaction waits for the disk, and no query to the driver.
        connection.commit = _ended(connection.alias, connection.commit)
        connection.rollback = _ended(connection.alias, connection.rollback)


def _ended(alias: str, end: Callable[[], None]) -> Callable[[], None]:
    @wraps(end)
    def end_transaction() -> None:
        with Charged(alias, queries=0):
            end()

    return end_transaction


def connect() -> None:
    """Follow the connections there are on this thread, and every one that will be made."""
    global _connected
    connection_created.connect(follow, dispatch_uid="kerneltrace_django.db")
    for connection in connections.all(initialized_only=True):
        follow(connection)
    if not _connected:
        _connected = True
        os.register_at_fork(after_in_child=_renew_lock)


def _renew_lock() -> None:
    # Another thread of the parent may have held it.
    global _lock
    _lock = threading.Lock()
