"""One run of a server: every chain and view at once, then what is asked one at a time."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from harness.pace import time_factor
from integration.served.servers import ANSWER_SECONDS, Server
from integration.truth.work import CALLS, READ_BYTES, SENT_BYTES, WRITE_BYTES

CHAINS = ("alone", "before", "after", "around")
# Units that middleware nearer the view does for the request.
ADDED = {"alone": 0, "before": 0, "after": 2, "around": 4}
WORK = ("sync_view", "async_view", "sync_threads", "async_tasks", "sync_stream", "async_stream")
ERRORS = ("sync_error", "async_error")
VIEWS = (*WORK, *ERRORS)
HEADS = ("sync_stream", "async_stream")
REPEATS = 3
LEAST = 8
CLIENTS = 16
SLEEPS_MS = (20, 25, 30, 35, 40)
LEFT_UNITS, LEFT_BYTES = 40, 500_000
COUNTED = (*CALLS, "misses")
LEDGER = ("cpu_ns", "run_queue_ns", "blocked_ns", "loop_wait_ns", "suspended_ns", "nested_ns")
THREADS = ("thread_cpu_ns", "thread_run_queue_ns", "thread_blocked_ns")
# Waking a loop is a byte or eight, of whoever does it; a thread's first allocation has glibc read
# the number of CPUs. All of that is less than a unit of work.
LESS_THAN_A_UNIT = {
    "read_bytes": READ_BYTES,
    "write_bytes": WRITE_BYTES,
    "net_tx_bytes": SENT_BYTES,
}

Row = dict[str, Any]


@dataclass
class Run:
    """What came of it."""

    workers: set[int]
    parent: int
    statuses: dict[str, int] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    before: dict[int, Row] = field(default_factory=dict)
    after: dict[int, Row] = field(default_factory=dict)
    said: str = ""

    def of(self, chain: str, view: str) -> list[Row]:
        """Return the rows of a chain and a view, which are not those that warmed up."""
        wanted = [path for path in self.statuses if path.startswith(f"/{chain}/{view}/")]
        return [row for row in self.rows if row["path"] in wanted]


class Asking:
    """The requests that are made of one server, each with units of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.clients = ThreadPoolExecutor(CLIENTS)
        self._numbers = itertools.count()

    def path(self, chain: str, view: str, units: int) -> str:
        return f"/{chain}/{view}/{next(self._numbers)}/{units}"

    def all(self, paths: Iterable[str]) -> dict[str, int]:
        """Ask for all of them, as many at once as there are clients; return the statuses."""
        listed = list(paths)
        answers = self.clients.map(lambda path: self.server.ask(path).status, listed)
        return dict(zip(listed, answers, strict=True))

    def of_each_worker(self, path: str) -> dict[int, Row]:
        """Ask until every worker has answered, and return what it said last."""
        found: dict[int, Row] = {}
        end = time.monotonic() + ANSWER_SECONDS * time_factor()
        while len(found) < self.server.kind.workers:
            assert time.monotonic() < end, f"only {sorted(found)} answer\n{self.server.said()}"
            asked = [path] * min(CLIENTS, 4 * self.server.kind.workers)
            for answer in self.clients.map(self.server.ask, asked):
                assert answer.status == 200, self.server.said()
                told = json.loads(answer.body)
                found[told["pid"]] = told
        return found


def serve(server: Server) -> Run:
    """Ask the server everything."""
    asking = Asking(server)
    workers = asking.of_each_worker("/alone/-/busy")
    run = Run(set(workers), next(iter(workers.values()))["parent"])
    warm_up(asking, run)
    run.before = asking.of_each_worker("/alone/-/totals")

    sizes = random.Random(1).sample(range(LEAST, LEAST + 200), len(CHAINS) * len(VIEWS) * REPEATS)
    run.statuses = asking.all(
        asking.path(chain, view, sizes.pop())
        for _ in range(REPEATS)
        for view in VIEWS
        for chain in CHAINS
    )
    for milliseconds in SLEEPS_MS:
        path = asking.path("alone", "slept", milliseconds)
        run.statuses[path] = server.ask(path).status
    for view in HEADS:
        path = asking.path("alone", view, LEAST)
        run.statuses[path] = server.ask(path, "HEAD").status
    left = asking.path("alone", "async_left" if server.kind.asgi else "sync_left", LEFT_UNITS)
    server.leave(left, LEFT_BYTES)
    run.statuses[left] = 200

    server.wait_for(set(run.statuses))
    run.after = asking.of_each_worker("/alone/-/totals")
    run.rows = server.rows()
    run.said = server.said()
    asking.clients.shutdown()
    return run


def warm_up(asking: Asking, run: Run) -> None:
    """Have every worker trace, and then import what each view and chain needs."""
    server = asking.server
    end = time.monotonic() + ANSWER_SECONDS * time_factor()
    while {row["pid"] for row in server.rows()} != run.workers:
        assert time.monotonic() < end, f"not every worker traces\n{server.said()}"
        asking.all(asking.path("alone", "slept", 50) for _ in range(4 * len(run.workers)))
    for _ in range(2 * len(run.workers)):
        asking.all(asking.path(chain, view, LEAST) for view in VIEWS for chain in CHAINS)


def wrongs_of(row: Row) -> list[str]:
    """Return what is wrong with one request's numbers."""
    charged, expected, path = row["charged"], row["expected"], row["path"]
    threads = charged["threads"] or 0
    if charged["attribution"] != "exact" or charged["backend"] != "bpf":
        return [f"{path}: {charged['backend']}, {charged['attribution']}"]
    wrongs = [
        f"{path}: {name} is {charged[name]}, not {expected[name]}"
        for name in COUNTED
        if charged[name] != expected[name]
    ]
    more = charged["opens"] - expected["opens"]
    if not 0 <= more <= threads + 1:
        wrongs.append(f"{path}: opens is {charged['opens']}, not {expected['opens']}")
    for name, unit in LESS_THAN_A_UNIT.items():
        if not 0 <= charged[name] - expected[name] < unit:
            wrongs.append(f"{path}: {name} is {charged[name]}, not {expected[name]}")
    return wrongs


def unbalanced(row: Row) -> list[str]:
    """Return which of a request's ledgers does not make its whole."""
    charged = row["charged"]
    wrongs = []
    for whole, parts in (("wall_ns", LEDGER), ("thread_ns", THREADS)):
        total = sum(charged[part] or 0 for part in parts)
        if total != (charged[whole] or 0):
            wrongs.append(f"{row['path']}: {whole} is {charged[whole]}, its parts make {total}")
    return wrongs
