"""Kill workers at random moments under load, and check that nobody else noticed."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from harness.bpf_objects import Objects, descendants, held_objects, wait_until_gone
from integration.served.servers import Server
from integration.shared.traffic import Traffic, rows, wait_until_traced

# Workers end in each of these ways; most by the one that lets nobody clean up.
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGABRT)
CLIENTS = 4
BREATH_SECONDS = 30.0


def workers_of(server: Server) -> list[int]:
    """Return the pids of the workers that run now."""
    children: list[int] = []
    for path in Path(f"/proc/{server.process.pid}/task").glob("*/children"):
        children += map(int, path.read_text().split())
    return children


def descriptors_of(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def kill_at_random(
    server: Server, kills: int, workers: int, seed: int, objects: Objects
) -> tuple[Traffic, set[int]]:
    """Kill so many workers while requests come in; return the traffic, and whom it hit.

    What any process of the server holds at any kill is added to ``objects``.
    """
    choice = random.Random(seed)
    traffic = Traffic(server, seed)
    killed: set[int] = set()
    with traffic.running(CLIENTS):
        for number in range(kills):
            # At least one is left to serve: the others are being replaced.
            deadline = time.monotonic() + BREATH_SECONDS
            while len(alive := workers_of(server)) < max(2, workers // 2):
                assert time.monotonic() < deadline, f"no new workers\n{server.said()}"
                time.sleep(0.01)
            victim = choice.choice(alive)
            objects |= held_objects(alive)
            killed.add(victim)
            with suppress(ProcessLookupError):  # one that was told to end just has
                os.kill(victim, SIGNALS[number % len(SIGNALS)])
            time.sleep(choice.random() * 0.06)
    return traffic, killed


def check_survivors(server: Server, traffic: Traffic, killed: set[int]) -> None:
    """Every request that a worker finished was counted exactly; who failed was in a killed one."""
    counted = rows(server.folder, "counted")
    # Who is told to end stops tracing with the requests that it still has.
    survived = [row for row in counted if row["pid"] not in killed]
    wrong = [row for row in survived if row["counted"] not in (None, row["done"])]
    over = [row for row in counted if (row["counted"] or 0) > row["done"]]
    assert over == []
    assert wrong == [], (len(wrong), len(counted), wrong[:8])
    # Those that come before a worker has joined are served and not traced.
    exact = [row for row in counted if row["counted"] is not None]
    assert len(exact) > len(traffic.answered) // 4
    begun = {row["id"]: row["pid"] for row in rows(server.folder, "begun")}
    failed = {name: begun.get(name) for name in traffic.failed}
    assert [name for name, pid in failed.items() if pid is not None and pid not in killed] == []


def survive(server: Server, kills: int, workers: int, seed: int) -> None:
    """Kill, and check the survivors, the index of every worker, and that all of it goes."""
    wait_until_traced(server, workers)
    objects = held_objects(descendants(server.process.pid))
    before = descriptors_of(server.process.pid)
    traffic, killed = kill_at_random(server, kills, workers, seed, objects)
    healths = wait_until_traced(server, workers)
    alive = {pid: health for pid, health in healths.items() if pid in workers_of(server)}
    indexes = [health["kernel_side"]["index"] for health in alive.values()]
    assert len(set(indexes)) == len(indexes)
    # The indexes of the dead were used again.
    assert max(indexes) < 3 * workers + 4 or min(indexes) > 200, indexes
    # For each region that its pool has grown by; for each of the dead it would be ten times that.
    assert descriptors_of(server.process.pid) <= before + 3 * workers + 4
    check_survivors(server, traffic, killed)
    objects |= held_objects(descendants(server.process.pid))
    server.process.terminate()
    server.process.wait(30)
    wait_until_gone(objects)
