"""Database work on the real kernel: queries are counted, waiting and bytes are what others say."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.db.utils import ConnectionHandler

from django_site import configure
from integration.postgres import postgres, probe
from kerneltrace_core.requests import RequestTracer, current
from kerneltrace_core.requests.engine import pop, push
from kerneltrace_django import db
from kerneltrace_django.current import RequestStats
from kerneltrace_django.db import DatabaseStats
from traced import tracing

configure()
db.connect()

MS = 1_000_000
ROWS = 40
TCP_BYTES = struct.Struct("=120xQQ64xQ")  # of struct tcp_info: acked, received, sent


def within_promise(measured: int | None, truth: int) -> bool:
    """Tell whether a time is within 1% or 1 ms of another."""
    return measured is not None and abs(measured - truth) <= max(MS, truth // 100)


@pytest.fixture
def tracer(require: Callable[..., None]) -> Iterator[RequestTracer]:
    require("thread_registration")
    with tracing() as running:
        yield running


@pytest.fixture(scope="session")
def server() -> Iterator[dict[str, dict[str, Any]]]:
    with postgres() as running:
        yield running


@pytest.fixture
def databases(
    require: Callable[..., None], request: pytest.FixtureRequest
) -> dict[str, dict[str, Any]]:
    require("Debian's postgresql", probe=probe)
    found: dict[str, dict[str, Any]] = request.getfixturevalue("server")
    return found


@pytest.fixture
def database(databases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return databases["tcp"]


@contextmanager
def request_of(tracer: RequestTracer) -> Iterator[RequestStats]:
    """Work as a request on this thread while the block runs."""
    stats = tracer.open(RequestStats, loop=False)
    record = stats.record
    assert record is not None
    record.info = stats
    token, previous = current.set(record), push(record)
    try:
        yield stats
    finally:
        pop(previous)
        current.reset(token)
        tracer.finish(stats)


@contextmanager
def connections_to(**databases: dict[str, Any]) -> Iterator[ConnectionHandler]:
    handler = ConnectionHandler(databases)
    try:
        yield handler
    finally:
        handler.close_all()


def sqlite_at(path: Path, **options: Any) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path), "OPTIONS": options}


def run(connection: Any, sql: str, *params: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)


def work(stats: RequestStats, alias: str = "default") -> DatabaseStats:
    found: DatabaseStats = stats.db[alias]
    return found


# ---- SQLite --------------------------------------------------------------------------------


class ThreadIo:
    """Bytes that this thread moved by read and write calls, as /proc has it."""

    def __enter__(self) -> ThreadIo:
        self._fd = os.open("/proc/thread-self/io", os.O_RDONLY)
        self._before, text = self._read()
        self._own = len(text)  # what is read here counts in the next reading
        return self

    def __exit__(self, *error: object) -> None:
        after, _ = self._read()
        self.read_bytes = after["rchar"] - self._before["rchar"] - self._own
        self.write_bytes = after["wchar"] - self._before["wchar"]
        os.close(self._fd)

    def _read(self) -> tuple[dict[str, int], bytes]:
        text = os.pread(self._fd, 1000, 0)
        lines = (line.split(": ") for line in text.decode().splitlines())
        return {name: int(value) for name, value in lines}, text


def test_queries_and_bytes_of_an_sqlite_file_are_exact(
    tracer: RequestTracer, tmp_path: Path
) -> None:
    with connections_to(default=sqlite_at(tmp_path / "a"), other=sqlite_at(tmp_path / "b")) as each:
        for alias in each:
            run(each[alias], "CREATE TABLE t (n INTEGER, padding BLOB)")
        with request_of(tracer) as stats:
            with ThreadIo() as truth:
                for n in range(ROWS):
                    run(each["default"], "INSERT INTO t VALUES (%s, zeroblob(3000))", n)
            run(each["other"], "SELECT 1")
            with each["other"].cursor() as cursor:
                cursor.executemany("INSERT INTO t VALUES (%s, NULL)", [(n,) for n in range(9)])
            live = work(stats)

    assert work(stats) == live
    assert live.queries == ROWS
    assert live.write_bytes == truth.write_bytes > ROWS * 3000
    assert live.read_bytes == truth.read_bytes > 0
    assert (live.rx_bytes, live.tx_bytes) == (0, 0)
    # BEGIN is a query of the sqlite3 module's own, not one of Django's.
    assert work(stats, "other").queries == 2
    assert set(stats.db) == {"default", "other"}


def test_transactions_and_savepoints_count_what_django_executes(tracer: RequestTracer) -> None:
    connection = connections["default"]
    run(connection, "CREATE TABLE t (n INTEGER)")
    connection.force_debug_cursor = True
    try:
        with request_of(tracer) as stats, transaction.atomic(), transaction.atomic():
            run(connection, "INSERT INTO t VALUES (1)")
    finally:
        connection.force_debug_cursor = False
        connection.close()
    executed = [each["sql"].split()[0] for each in connection.queries]

    assert executed == ["BEGIN", "SAVEPOINT", "INSERT", "RELEASE", "COMMIT"]
    assert work(stats).queries == 4  # the driver commits without a query


def test_a_commit_writes_and_waits_for_its_database(tracer: RequestTracer, tmp_path: Path) -> None:
    with connections_to(default=sqlite_at(tmp_path / "a")) as each:
        connection = each["default"]
        run(connection, "CREATE TABLE t (n INTEGER, padding BLOB)")
        with request_of(tracer) as stats, ThreadIo() as truth:
            connection.set_autocommit(False)
            run(connection, "INSERT INTO t VALUES (1, zeroblob(100000))")
            before = work(stats)
            connection.commit()
            after = work(stats)

    assert before.queries == after.queries
    assert after.write_bytes == truth.write_bytes
    assert truth.write_bytes > 100_000 > (before.write_bytes or 0)
    if stats.fsync_ns:  # the file system may be one that never waits
        assert (after.blocked_ns or 0) <= (stats.blocked_ns or 0)


def test_a_lock_on_the_sqlite_file_is_blocked_time(tracer: RequestTracer, tmp_path: Path) -> None:
    path = tmp_path / "a"
    with connections_to(default=sqlite_at(path, timeout=10)) as each:
        run(each["default"], "CREATE TABLE t (n INTEGER)")
        holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(0.2, holder.execute, ["ROLLBACK"])
        with request_of(tracer) as stats:
            release.start()
            begun = time.monotonic_ns()
            run(each["default"], "INSERT INTO t VALUES (1)")
            took_ns = time.monotonic_ns() - begun
        release.join()
        holder.close()

    blocked_ns = work(stats).blocked_ns
    assert blocked_ns is not None
    assert 150 * MS < blocked_ns <= took_ns


def test_a_wrapper_that_ends_after_the_connection_was_made_takes_only_itself_away(
    tracer: RequestTracer, tmp_path: Path
) -> None:
    with connections_to(default=sqlite_at(tmp_path / "a")) as each:
        connection = each["default"]

        def other(execute: Any, *args: Any) -> Any:
            return execute(*args)

        with connection.execute_wrapper(other):
            run(connection, "SELECT 1")
        left = list(connection.execute_wrappers)
        connection.close()
        with request_of(tracer) as stats:
            run(connection, "SELECT 1")

    assert left == [db.measure]
    assert work(stats).queries == 1


def test_without_bpf_what_is_only_known_of_sockets_is_none(tmp_path: Path) -> None:
    with (
        tracing(backend="procfs") as tracer,
        connections_to(default=sqlite_at(tmp_path / "a")) as each,
    ):
        run(each["default"], "CREATE TABLE t (n INTEGER)")
        with request_of(tracer) as stats:
            run(each["default"], "INSERT INTO t VALUES (1)")

    measured = work(stats)
    assert measured.queries == 1
    assert (measured.rx_bytes, measured.tx_bytes) == (None, None)
    assert (measured.write_bytes or 0) > 4096
    assert measured.blocked_ns is not None


def test_outside_a_request_nothing_is_counted(tracer: RequestTracer, tmp_path: Path) -> None:
    with connections_to(default=sqlite_at(tmp_path / "a")) as each:
        with request_of(tracer) as stats:
            pass
        run(each["default"], "CREATE TABLE t (n INTEGER)")

    assert stats.db is None


def test_a_query_that_fails_is_counted_and_its_error_is_the_callers(
    tracer: RequestTracer, tmp_path: Path
) -> None:
    from django.db import OperationalError

    with connections_to(default=sqlite_at(tmp_path / "a")) as each, request_of(tracer) as stats:
        each["default"].ensure_connection()
        with pytest.raises(OperationalError, match="no such table"):
            run(each["default"], "SELECT * FROM missing")

    assert work(stats).queries == 1


# ---- PostgreSQL ----------------------------------------------------------------------------

# The server's own word on how long it slept: with few CPUs a sleep ends late.
SLEEP = """
    SELECT (extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1e9)::bigint
    FROM pg_sleep(%s)
"""
ATTEMPTS = 5


def sleep_in(connection: Any, seconds: float) -> int:
    """Have the server sleep; return for how many nanoseconds it did."""
    with connection.cursor() as cursor:
        cursor.execute(SLEEP, [seconds])
        slept_ns: int = cursor.fetchone()[0]
    return slept_ns


def assert_agrees(attempt: Callable[[], tuple[int, int]]) -> None:
    """Compare what was measured to the truth; again if somebody else may have had the CPU."""
    for _ in range(ATTEMPTS):
        measured_ns, truth_ns = attempt()
        if within_promise(measured_ns, truth_ns):
            break
    print(f"slept {truth_ns / MS:.3f} ms, blocked {measured_ns / MS:.3f} ms")
    assert within_promise(measured_ns, truth_ns)


@pytest.mark.parametrize("seconds", [0.02, 0.3])
@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_blocked_time_on_the_socket_is_pg_sleep(
    tracer: RequestTracer, databases: dict[str, dict[str, Any]], way: str, seconds: float
) -> None:
    with connections_to(default=databases[way]) as each:
        sleep_in(each["default"], 0)

        def attempt() -> tuple[int, int]:
            with request_of(tracer) as stats:
                slept_ns = sleep_in(each["default"], seconds)
            measured = work(stats)
            assert measured.queries == 1
            assert slept_ns >= seconds * 1e9
            return measured.blocked_ns or 0, slept_ns

        assert_agrees(attempt)


def test_bytes_on_the_socket_are_those_of_the_kernels_own_connection(
    tracer: RequestTracer, database: dict[str, Any]
) -> None:
    with connections_to(default=database) as each:
        connection = each["default"]
        run(connection, "SELECT 1")
        with socket.socket(fileno=os.dup(connection.connection.fileno())) as same:
            before = TCP_BYTES.unpack_from(same.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 232))
            with request_of(tracer) as stats:
                for n in range(1, ROWS):
                    run(connection, "SELECT repeat('x', %s)", n * 1000)
            after = TCP_BYTES.unpack_from(same.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 232))

    _, received, sent = (late - early for late, early in zip(after, before, strict=True))
    measured = work(stats)
    assert measured.queries == ROWS - 1
    assert measured.rx_bytes == received > sum(range(1, ROWS)) * 1000
    assert measured.tx_bytes == sent
    assert (measured.read_bytes, measured.write_bytes) == (0, 0)


def test_requests_on_many_threads_have_their_own_queries_and_waits(
    tracer: RequestTracer, database: dict[str, Any]
) -> None:
    barrier = threading.Barrier(8)

    def serve(number: int) -> tuple[int, int, DatabaseStats]:
        with connections_to(default=database) as each:
            connection = each["default"]
            sleep_in(connection, 0)
            barrier.wait()
            with request_of(tracer) as stats:
                slept_ns = sum(sleep_in(connection, 0.02) for _ in range(number))
                run(connection, "SELECT repeat('x', %s)", number * 10_000)
        return number, slept_ns, work(stats)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(serve, range(1, 9)))

    for number, slept_ns, measured in results:
        assert measured.queries == number + 1
        assert measured.blocked_ns is not None
        assert measured.rx_bytes is not None
        # Sixteen that want two CPUs: a client may be late to begin to wait, and to have an answer.
        assert slept_ns * 3 // 4 < measured.blocked_ns < slept_ns + (number + 1) * 10 * MS
        assert number * 10_000 < measured.rx_bytes < number * 10_300 + 1000


def test_queries_of_an_async_view_run_on_a_thread_and_are_its_own(
    tracer: RequestTracer, database: dict[str, Any]
) -> None:
    slept: list[int] = []

    def query() -> None:
        with connections_to(default=database) as each:
            slept[:] = [sleep_in(each["default"], 0.1)]

    async def serve() -> RequestStats:
        tracer.adopt_loop()
        stats = tracer.open(RequestStats)
        record = stats.record
        assert record is not None
        record.info = stats
        token = current.set(record)
        try:
            await record.step(sync_to_async(query)())
        finally:
            current.reset(token)
            tracer.finish(stats)
        return stats

    def attempt() -> tuple[int, int]:
        stats = asyncio.run(serve())
        assert stats.threads == 1
        assert work(stats).queries == 1
        return work(stats).blocked_ns or 0, slept[0]

    assert_agrees(attempt)
