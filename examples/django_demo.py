"""Run the bookshop under gunicorn with mixed traffic and show where its views spend their time.

python examples/django_demo.py [--seconds S]

DATABASE_URL=postgresql://... has it on PostgreSQL instead of SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from demo import BACKENDS, UNTRACED, Progress, show
from tour.child import END_SECONDS, START_SECONDS, free_port
from tour.ledger import ledger
from tour.paint import bold
from tour.table import table
from tour.traffic import TRACED_SECONDS, Pace, Traffic

PROJECT = Path(__file__).parent / "django_project"
WORKERS, THREADS = 2, 8
IMAGE = bytes(256 * 1024)
ORDERS, COVERS = "/orders/", "/covers/"
# By the views' names, in the order of the table.
MIX = {
    "health": Pace("/health/", 0.05),
    "index": Pace("/", 0.1),
    "book": Pace("/books/7/", 0.05),
    "rivals": Pace("/rivals/", 0.7),
    "order": Pace(ORDERS, 0.4, burst=4, answer=201),
    "cover": Pace(COVERS, 0.25, answer=201),
    "export": Pace("/export/", 0.4),
    "offers": Pace("/offers/", 0.2),
    "postage": Pace("/postage/", 0.3),
}


@dataclass
class Visits(Traffic):
    """Sends the bookshop's mix; ``traced`` tells whether each worker has told of a request."""

    traced: Callable[[], bool] = bool

    async def visit(self, progress: Progress) -> None:
        """Send for the given time."""
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as client:
            await self.begin(client)
            self.started = time.monotonic()
            paced = [asyncio.ensure_future(self._send(client, pace)) for pace in MIX.values()]
            shown = asyncio.ensure_future(self._show(progress))
            try:
                await asyncio.gather(*paced)
            finally:
                shown.cancel()
            progress(self)

    async def begin(self, client: httpx.AsyncClient) -> None:
        """Wait until all workers trace, then load what each view imports at its first call."""
        until = time.monotonic() + TRACED_SECONDS
        while not self.traced() and time.monotonic() < until:
            await asyncio.gather(*(client.get("/postage/") for _ in range(2 * WORKERS)))
        for pace in MIX.values():
            await asyncio.gather(*(self._ask(client, pace) for _ in range(2 * WORKERS)))
        self.sent.clear()
        self.answered = 0

    async def _ask(self, client: httpx.AsyncClient, pace: Pace) -> None:
        self.sent[pace.path] += 1
        try:
            if pace.path in (ORDERS, COVERS):
                answer = await client.post(pace.path, content=IMAGE * (pace.path == COVERS))
            else:
                answer = await client.get(pace.path)
        except httpx.HTTPError as error:
            self.failures.append(f"{pace.path}: {error!r}")
            return
        self.answered += 1
        if answer.status_code != pace.answer:
            self.failures.append(f"{pace.path}: {answer.status_code}")


class Shop:
    """gunicorn with the bookshop, its data in ``folder``."""

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port(0)}"
        self.environment = {
            **os.environ,
            "BOOKSHOP_DATA": str(folder),
            "KERNEL_STATS_FOLDER": str(folder),
            "DJANGO_SETTINGS_MODULE": "bookshop.settings",
        }
        for command in ("migrate", "fill"):
            self.manage(command)
        address = self.url.removeprefix("http://")
        command = [sys.executable, "-m", "gunicorn", "bookshop.wsgi", "--bind", address]
        command += ["--workers", str(WORKERS), "--threads", str(THREADS), "--log-level", "warning"]
        self.process = subprocess.Popen(
            command,
            cwd=PROJECT,
            # Where gunicorn puts its control socket.
            env={**self.environment, "HOME": str(folder)},
            # Its own session: Ctrl-C reaches us, and we end it in order.
            start_new_session=True,
            stdout=log,
            stderr=log,
        )

    def manage(self, command: str) -> None:
        """Run a management command; its output is told only if it fails."""
        done = subprocess.run(
            [sys.executable, "manage.py", command],
            cwd=PROJECT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"demo: manage.py {command} failed:\n{done.stdout}{done.stderr}")

    def wait_until_ready(self) -> None:
        """Return when it answers, or end with what it said."""
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                httpx.get(f"{self.url}/health/").raise_for_status()
            except httpx.HTTPError:
                if self.process.poll() is not None or time.monotonic() > until:
                    said = "\n".join(self.said()) or f"nothing in {START_SECONDS:.0f} s"
                    raise SystemExit(f"demo: the site did not start; it said:\n{said}") from None
                time.sleep(0.05)
            else:
                return

    def said(self) -> list[str]:
        """Return the lines of its log, each once."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        return list(dict.fromkeys(lines))

    def traced(self) -> bool:
        """Tell whether every worker has written down a request."""
        return len(list(self.folder.glob("*.jsonl"))) >= WORKERS

    def requests(self) -> list[dict[str, Any]]:
        """Return what the workers wrote down."""
        files = self.folder.glob("*.jsonl")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def end(self) -> None:
        """End it: politely, then not."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def shop() -> Iterator[Shop]:
    """Have the shop open for the block; SIGTERM ends the block as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Not /tmp, which is often memory: what is written here is meant to reach a disk.
    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="kerneltrace-", dir="/var/tmp")
        path = Path(stack.enter_context(folder))
        opened = Shop(path, stack.enter_context(open(path / "log", "wb")))
        stack.callback(opened.end)
        yield opened


def demo(seconds: float) -> int:
    """Show where the time went; returns the exit status."""
    print(bold("kerneltrace demo for Django"))
    print(f"  making a bookshop, starting it under gunicorn with {WORKERS} workers ...", flush=True)
    with shop() as opened:
        opened.wait_until_ready()
        print(f"  {opened.url}: {len(MIX)} views, mixed traffic for {seconds:g} s", flush=True)
        visits = Visits(opened.url, seconds, traced=opened.traced)
        progress = Progress()
        asyncio.run(visits.visit(progress))
        progress.end()
        opened.end()
        begun_ns = int(visits.started * 1e9)
        requests = [each for each in opened.requests() if each["ended_ns"] >= begun_ns]
        said = opened.said()
    for line in [*said, *(f"failed: {failure}" for failure in visits.failures)][:8]:
        print(f"  the site said: {line}")
    if not requests:
        print(UNTRACED)
        return 1 if visits.failures else 0
    # A view has its worker's thread to itself; there is no event loop to wait for.
    print(bold("Where the time went, by view") + "   ms on the worker's thread, mean per request")
    show(list(table(requests, list(MIX)))[1:])
    read = [request for request in requests if request["method"] == "GET"]
    slowest = max(read, key=lambda request: request["wall_ns"])
    show(ledger(slowest))
    print(BACKENDS[requests[0]["backend"]])
    print("Next: docs/django.md, to trace your own project.")
    return 1 if visits.failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8, help="how long to send requests")
    arguments = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        return demo(arguments.seconds)
    except KeyboardInterrupt:
        print()
        return 130


if __name__ == "__main__":
    sys.exit(main())
