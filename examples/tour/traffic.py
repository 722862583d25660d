"""Mixed traffic: each route at its own pace, so that requests meet each other on the event loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True)
class Pace:
    """``burst`` requests of ``path`` at once, every ``seconds``."""

    path: str
    seconds: float
    burst: int = 1
    answer: int = 200


MIX = (
    Pace("/nothing", 0.025),
    Pace("/cpu", 0.15),
    Pace("/sleep", 0.06, burst=5),
    Pace("/blocking-sleep", 0.7),
    Pace("/file", 0.15),
    Pace("/lock", 0.4, burst=4),
    Pace("/tasks", 0.1),
    Pace("/upstream", 0.1),
    Pace("/upstream-sync", 0.2),
    Pace("/sqlite", 0.2),
    Pace("/stream", 0.25),
    Pace("/background", 0.2),
    Pace("/missing", 0.25, answer=404),
)
TRACED_SECONDS = 5.0


@dataclass
class Traffic:
    """Sends the mix and counts what came back."""

    url: str
    seconds: float
    sent: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    started: float = 0.0

    async def run(self, progress: Callable[[Traffic], None]) -> list[dict[str, Any]]:
        """Send for the given time; returns what the application remembers of each request."""
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
            await self._warm_up(client)
            self.started = time.monotonic()
            paced = [asyncio.ensure_future(self._send(client, pace)) for pace in MIX]
            shown = asyncio.ensure_future(self._show(progress))
            try:
                await asyncio.gather(*paced)
            finally:
                shown.cancel()
            progress(self)
            # A request is reported when its background work is done, after the client is.
            await asyncio.sleep(0.2)
            remembered = await client.get("/-/requests")
        found: list[dict[str, Any]] = remembered.json()
        return found

    async def _warm_up(self, client: httpx.AsyncClient) -> None:
        """Wait until requests are traced, then load what each route imports at its first call."""
        until = time.monotonic() + TRACED_SECONDS
        while "server-timing" not in (await client.get("/nothing")).headers:
            if time.monotonic() > until:
                break
            await asyncio.sleep(0.02)
        for pace in MIX:
            await client.get(pace.path)
        await asyncio.sleep(0.1)
        await client.get("/-/requests")

    async def _send(self, client: httpx.AsyncClient, pace: Pace) -> None:
        due = self.started + random.random() * pace.seconds
        going: set[asyncio.Task[None]] = set()
        while due < self.started + self.seconds:
            await asyncio.sleep(due - time.monotonic())
            due += pace.seconds
            for _ in range(pace.burst):
                task = asyncio.ensure_future(self._ask(client, pace))
                going.add(task)
                task.add_done_callback(going.discard)
        await asyncio.gather(*going)

    async def _ask(self, client: httpx.AsyncClient, pace: Pace) -> None:
        self.sent[pace.path] += 1
        try:
            status = (await client.get(pace.path)).status_code
        except httpx.HTTPError as error:
            self.failures.append(f"{pace.path}: {error!r}")
            return
        self.answered += 1
        if status != pace.answer:
            self.failures.append(f"{pace.path}: {status}")

    async def _show(self, progress: Callable[[Traffic], None]) -> None:
        while True:
            await asyncio.sleep(0.25)
            progress(self)
