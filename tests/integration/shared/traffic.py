"""Traffic to a server with several workers, and what its workers wrote down about it."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.pace import time_factor
from integration.served.servers import ANSWER_SECONDS, Server

READY_SECONDS = 60.0
# What each worker has to have served, and all of them on the average, before they are judged: by so
# many clients at once.
LEAST_ROWS = 10
ROWS = 20
CLIENTS = 8

Row = dict[str, Any]


def rows(folder: Path, kind: str) -> list[Row]:
    """Return the rows of a kind that the workers wrote."""
    found: list[Row] = []
    for file in folder.glob(f"{kind}-*.jsonl"):
        lines = file.read_text().splitlines(keepends=True)
        found += [json.loads(line) for line in lines if line.endswith("\n")]
    return found


def wait_until_traced(server: Server, workers: int) -> dict[int, Row]:
    """Ask until so many workers trace; return the health of each by its pid."""
    found: dict[int, Row] = {}
    end = time.monotonic() + READY_SECONDS * time_factor()
    while sum(health["backend"] == "bpf" for health in found.values()) < workers:
        assert time.monotonic() < end, f"{found}\n{server.said()}"
        try:
            answer = json.loads(server.ask("/health").body)
        except (OSError, ValueError, http.client.HTTPException):
            time.sleep(0.02)
            continue
        found[answer["pid"]] = answer["health"]
    return found


class Traffic:
    """Requests from several threads until the block ends; each has an id of its own."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._ids = (f"s{seed}r{number}" for number in itertools.count(1))
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answered: set[str] = set()
        self.failed: dict[str, str] = {}
        # From when to when each of those took.
        self.failed_at: dict[str, tuple[float, float]] = {}

    def _ask(self) -> None:
        while not self._stop.is_set():
            self.one()

    def one(self) -> None:
        """Send one request and remember what became of it."""
        with self._lock:
            number = next(self._ids)
        kind = self._random.choice(("calls", "thread"))
        address = "127.0.0.1", self._server.port
        connection = http.client.HTTPConnection(*address, timeout=ANSWER_SECONDS)
        began = time.monotonic()
        try:
            path = f"/{kind}/{self._random.randrange(1, 400)}/{number}"
            connection.request("GET", path, headers={"connection": "close"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
            self.answered.add(number)
        except (OSError, http.client.HTTPException) as error:
            self.failed[number] = repr(error)
            self.failed_at[number] = began, time.monotonic()
        finally:
            connection.close()

    @contextmanager
    def running(self, threads: int) -> Iterator[Traffic]:
        """Keep so many requests under way for the block."""
        running = [threading.Thread(target=self._ask) for _ in range(threads)]
        for thread in running:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in running:
                thread.join()


def wait_until_settled(server: Server, workers: Callable[[], list[int]]) -> dict[int, Row]:
    """Return the health of each worker, once all trace and none serves anybody but who asks."""
    found: dict[int, Row] = {}
    end = time.monotonic() + READY_SECONDS * time_factor()
    while True:
        alive = set(workers())
        quiet = {pid for pid in alive if found.get(pid, {}).get("requests_open") == 1}
        if quiet == alive and len(alive) == server.kind.workers:
            return {pid: found[pid] for pid in alive}
        assert time.monotonic() < end, f"{alive} {found}\n{server.said()}"
        with suppress(OSError, ValueError, http.client.HTTPException):
            answer = json.loads(server.ask("/health").body)
            found[answer["pid"]] = answer["health"]


def rows_by_worker(
    folder: Path, kind: str, traffic: Traffic, pids: Collection[int]
) -> dict[int, list[Row]]:
    """Return the rows of some workers about a traffic's answered requests."""
    found: dict[int, list[Row]] = {pid: [] for pid in pids}
    for row in rows(folder, kind):
        if row["pid"] in found and row["id"] in traffic.answered:
            found[row["pid"]].append(row)
    return found


def check_truth(server: Server, traffic: Traffic, pids: Collection[int]) -> None:
    """Serve clients at once until each worker, all of which trace, has served enough: exactly."""
    end = time.monotonic() + READY_SECONDS * time_factor()
    with traffic.running(CLIENTS):
        while True:
            begun = rows_by_worker(server.folder, "begun", traffic, pids)
            served = {pid: len(own) for pid, own in begun.items()}
            if min(served.values()) >= LEAST_ROWS and sum(served.values()) >= ROWS * len(served):
                break
            assert time.monotonic() < end, f"{served}\n{server.said()}"
            time.sleep(0.1)
    assert traffic.failed == {}
    begun = rows_by_worker(server.folder, "begun", traffic, pids)
    # A row is written once the answer has been sent, so the last ones may be on their way.
    while True:
        counted = rows_by_worker(server.folder, "counted", traffic, pids)
        missing = {pid: len(begun[pid]) - len(counted[pid]) for pid in pids}
        if not any(missing.values()):
            break
        assert time.monotonic() < end, f"not traced: {missing}\n{server.said()}"
        time.sleep(0.02)
    for pid, own in counted.items():
        wrong = [row for row in own if row["counted"] != row["done"]]
        assert wrong == [], (pid, len(wrong), len(own), wrong[:8])
