"""Traffic to a server with several workers, and what its workers wrote down about it."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.pace import time_factor
from integration.served.servers import ANSWER_SECONDS, Server

READY_SECONDS = 60.0

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
        self._numbers = itertools.count(1)
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self.answered: set[str] = set()
        self.failed: dict[str, str] = {}

    def _ask(self) -> None:
        while not self._stop.is_set():
            self.one()

    def one(self) -> None:
        """Send one request and remember what became of it."""
        number = f"r{next(self._numbers)}"
        kind = self._random.choice(("calls", "thread"))
        address = "127.0.0.1", self._server.port
        connection = http.client.HTTPConnection(*address, timeout=ANSWER_SECONDS)
        try:
            path = f"/{kind}/{self._random.randrange(1, 400)}/{number}"
            connection.request("GET", path, headers={"connection": "close"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
            self.answered.add(number)
        except (OSError, http.client.HTTPException) as error:
            self.failed[number] = repr(error)
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
