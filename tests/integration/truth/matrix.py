"""Serve every construct at once, and write down what each request did and what it was charged.

Run as a program, in an environment of the test's choice; the result is JSON on standard output:

    python -m integration.truth.matrix --loop uvloop --concurrency 64
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import logging
import os
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from integration.truth.constructs import CONSTRUCTS, pool
from integration.truth.routes import PREFIXES, Routes, path_of
from integration.truth.work import CALLS, Desk, Job
from kerneltrace_asgi import kerneltrace_lifespan
from kerneltrace_core.requests import KernelStats, RequestTracer

LOOPS = ("asyncio", "uvloop", "trio", "eager", "debug", "factories")
LEAST = 6  # units: some constructs do a few of them apart
BYTES = ("read_bytes", "write_bytes", "net_tx_bytes")


@dataclass
class Row:
    """One request: its job, and what it was charged."""

    number: int
    name: str
    path: str
    job: Job
    warm_up: bool
    inner: bool = False
    reached: anyio.Event = field(default_factory=anyio.Event)
    charged: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.path,
            "warm_up": self.warm_up,
            "inner": self.inner,
            "planned": self.job.planned,
            "done": self.job.done,
            "expected": {**self.job.calls(), **self.job.bytes_moved()},
            "charged": self.charged,
        }


def charged_by(stats: KernelStats | None) -> dict[str, Any] | None:
    """Return the numbers of a job's kind that are in stats."""
    if stats is None:
        return None
    calls = {call.name: call for call in stats.top_syscalls or ()}
    found: dict[str, Any] = {name: getattr(stats, name) for name in BYTES}
    if stats.top_syscalls is not None:
        found |= {name: calls[name].calls if name in calls else 0 for name in CALLS}
        found["opens"] = stats.opens
        found["misses"] = calls["openat"].errors if "openat" in calls else 0
    found["backend"] = stats.backend
    found["attribution"] = stats.attribution
    found["detached"] = stats.detached
    return found


class Matrix:
    """The rows of one run, and how they are served."""

    def __init__(self, loop: str, concurrency: int, desk: Desk, seed: int) -> None:
        self.loop = loop
        self.kind = "trio" if loop == "trio" else "asyncio"
        self.concurrency = concurrency
        self.desk = desk
        self.random = random.Random(seed)
        self.rows: dict[int, Row] = {}
        self.sizes: list[int] = []
        self.warm_up = True
        self.routes = Routes(self.rows, self.inner)
        self.app = self.routes.build(on_request=self.finished)
        self.failures: list[str] = []
        self.user_tasks = 0

    def add(self, prefix: str, name: str) -> Row:
        number = len(self.rows)
        path = path_of(prefix, name, number)
        row = Row(number, name, path, Job(self.desk, self.sizes.pop()), self.warm_up)
        self.rows[number] = row
        return row

    def inner(self) -> Row:
        row = self.add("", self.random.choice(("coroutine", "def_endpoint", "stream")))
        row.inner = True
        return row

    def finished(self, scope: Any, stats: KernelStats) -> None:
        """Keep what the middleware's hook is told."""
        row = self.rows[int(scope["path"].rpartition("/")[2])]
        row.charged.append(
            {"response": charged_by(stats), "background": charged_by(stats.background)}
        )

    async def serve(self, row: Row) -> None:
        """Call the application as a server would."""
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": row.path,
            "raw_path": row.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
            "asgi": {"version": "3.0", "spec_version": "2.4"},
        }
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not messages:
                await anyio.sleep_forever()
            return messages.pop()

        async def send(message: dict[str, Any]) -> None:
            await anyio.sleep(0)

        try:
            if row.name != "disconnected":
                await self.app(scope, receive, send)
                return
            async with anyio.create_task_group() as group:
                group.start_soon(self.app, scope, receive, send)
                await row.reached.wait()
                group.cancel_scope.cancel()
        except KeyError:
            if row.name != "failing":
                raise
        except Exception as error:  # noqa: BLE001 - all are told, by request
            self.failures.append(f"{row.path}: {error!r}")

    async def batch(self, rows: list[Row], concurrency: int) -> None:
        """Serve these, so many at a time."""
        if concurrency == 1:  # as a kept connection does: one after the other in one task
            for row in rows:
                await self.serve(row)
            return
        limit = anyio.Semaphore(concurrency)

        async def one(row: Row) -> None:
            async with limit:
                await self.serve(row)

        async with anyio.create_task_group() as group:
            for row in rows:
                group.start_soon(one, row)

    def kinds(self) -> list[tuple[str, str]]:
        return [
            (prefix, name)
            for name, each in CONSTRUCTS.items()
            if each.exists(self.kind)
            for prefix in PREFIXES
        ]

    def make_rows(self, count: int) -> list[Row]:
        """Make so many requests, each with its own size, of every kind in turn."""
        kinds = self.kinds()
        names = [kinds[turn % len(kinds)] for turn in range(count)]
        inner = 2 * sum(name == "client" for _, name in names)
        self.sizes = self.random.sample(range(LEAST, LEAST + count + inner), count + inner)
        rows = [self.add(prefix, name) for prefix, name in names]
        self.random.shuffle(rows)
        return rows

    def set_factory(self) -> None:
        """Do as a user does who wants to see every task."""

        def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
            self.user_tasks += 1
            return asyncio.Task(coroutine, loop=loop, **options)

        asyncio.get_running_loop().set_task_factory(factory)

    async def run(self, batches: int) -> dict[str, Any]:
        """Serve all kinds once to warm up, then every batch; return what to compare."""
        if self.loop == "eager":
            factory = getattr(asyncio, "eager_task_factory")  # noqa: B009 - newer than our least
            asyncio.get_running_loop().set_task_factory(factory)
        async with kerneltrace_lifespan() as tracer:
            # Lazy imports read and open files: each path is taken once before anything counts.
            await self.batch(self.make_rows(len(self.kinds())), 8)
            self.warm_up = False
            tasks_by_batch = []
            for _ in range(batches):
                if self.loop == "factories":
                    self.set_factory()
                before = self.user_tasks
                rows = self.make_rows(max(2 * self.concurrency, len(self.kinds())))
                await self.batch(rows, self.concurrency)
                tasks_by_batch.append(self.user_tasks - before)
            return self.result(tracer, tasks_by_batch)

    def result(self, tracer: RequestTracer, tasks_by_batch: list[int]) -> dict[str, Any]:
        done: dict[str, int] = {}
        for row in self.rows.values():
            for name, count in (row.job.calls() | row.job.bytes_moved()).items():
                done[name] = done.get(name, 0) + count
        return {
            "python": sys.version.split()[0],
            "pid": os.getpid(),
            "uid": os.getuid(),
            "loop": self.loop,
            "concurrency": self.concurrency,
            "backend": tracer.backend,
            "health": tracer.health(),
            "failures": self.failures,
            "user_tasks": tasks_by_batch,
            "rows": [row.as_dict() for row in self.rows.values()],
            "done": done,
            "unattributed": charged_by(tracer.unattributed()),
            "late": charged_by(tracer.late()),
        }


def backend_of(loop: str) -> dict[str, Any]:
    """Return anyio's arguments for a kind of event loop."""
    if loop == "trio":
        return {"backend": "trio"}
    options: dict[str, Any] = {"debug": loop == "debug"}
    if loop == "uvloop":
        import uvloop

        options["loop_factory"] = uvloop.new_event_loop
    return {"backend": "asyncio", "backend_options": options}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for the files that are worked on")
    options = parser.parse_args()
    # What the constructs do wrong on purpose is not worth a line.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        desk = Desk(options.folder or Path(temporary))
        matrix = Matrix(options.loop, options.concurrency, desk, options.seed)
        run = functools.partial(matrix.run, options.batches)
        result = anyio.run(run, **backend_of(options.loop))
        pool.shutdown()
        desk.close()
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
