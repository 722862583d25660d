"""Kill workers at random moments under load, and check that nobody else noticed."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from harness.bpf_objects import Objects, descendants, held_objects, wait_until_gone
from harness.pace import time_factor
from integration.served.servers import Server
from integration.shared.traffic import (
    Row,
    Traffic,
    check_truth,
    rows,
    wait_until_settled,
)

# Workers end in each of these ways; most by the one that lets nobody clean up.
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGABRT)
CLIENTS = 4
BREATH_SECONDS = 30.0


def workers_of(server: Server) -> list[int]:
    """Return the pids of the workers that run now."""
    children: list[int] = []
    for path in Path(f"/proc/{server.process.pid}/task").glob("*/children"):
        children += map(int, path.read_text().split())
    return [pid for pid in children if not _tracks_resources(pid)]


def _tracks_resources(pid: int) -> bool:
    """Tell whether a process is multiprocessing's own, beside the workers that it spawns."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def descriptors_of(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def wait_until_all_have(pids: list[int], descriptors: int | None = None) -> int:
    """Wait until each has as many descriptors as that, or as all others; return how many."""
    end = time.monotonic() + BREATH_SECONDS * time_factor()
    while True:
        found = {pid: descriptors_of(pid) for pid in pids}
        wanted = found[pids[0]] if descriptors is None else descriptors
        if set(found.values()) == {wanted}:
            return wanted
        # The last connection may not be closed yet.
        assert time.monotonic() < end, (found, wanted)
        time.sleep(0.02)


class Kills:
    """Who was killed, and from when to when each of them was on its way."""

    def __init__(self) -> None:
        self.began: dict[int, float] = {}
        self.gone: dict[int, float] = {}

    def kill(self, pid: int, number: signal.Signals) -> None:
        self.began.setdefault(pid, time.monotonic())
        with suppress(ProcessLookupError):  # one that was told to end just has
            os.kill(pid, number)

    def see(self, alive: list[int]) -> None:
        """Take note of who is no longer there."""
        now = time.monotonic()
        for pid in self.began.keys() - self.gone.keys() - set(alive):
            self.gone[pid] = now

    def meet(self, began: float, ended: float) -> bool:
        """Tell whether somebody was on its way in such a time."""
        return any(
            at <= ended and began <= self.gone.get(pid, ended) for pid, at in self.began.items()
        )


def kill_at_random(
    server: Server, kills: int, seed: int, objects: Objects
) -> tuple[Traffic, Kills]:
    """Kill so many workers while requests come in; return the traffic, and whom it hit.

    What any process of the server holds at any kill is added to ``objects``.
    """
    choice = random.Random(seed)
    traffic = Traffic(server, seed)
    killed = Kills()
    with traffic.running(CLIENTS):
        for number in range(kills):
            # At least one is left to serve: the others are being replaced.
            deadline = time.monotonic() + BREATH_SECONDS
            while len(alive := workers_of(server)) < max(2, server.kind.workers // 2):
                assert time.monotonic() < deadline, f"no new workers\n{server.said()}"
                time.sleep(0.01)
            killed.see(alive)
            objects |= held_objects(alive)
            killed.kill(choice.choice(alive), SIGNALS[number % len(SIGNALS)])
            time.sleep(choice.random() * 0.06)
    return traffic, killed


def check_survivors(server: Server, traffic: Traffic, killed: Kills) -> None:
    """Every request of a survivor was counted exactly; who failed was in a killed one's hands."""
    counted = rows(server.folder, "counted")
    over = [
        row
        for row in counted
        if row["counted"] and any(row["counted"][name] > row["done"][name] for name in row["done"])
    ]
    assert over == []
    # Who is told to end stops tracing with the requests that it still has.
    survived = [row for row in counted if row["pid"] not in killed.began]
    wrong = [row for row in survived if row["counted"] not in (None, row["done"])]
    assert wrong == [], (len(wrong), len(counted), wrong[:8])
    # Those that come before a worker has joined are served and not traced.
    exact = [row for row in counted if row["counted"] is not None]
    assert len(exact) > len(traffic.answered) // 4
    begun = rows(server.folder, "begun")
    taken = [row for row in begun if row["pid"] not in killed.began]
    assert untraced_after_traced(taken, exact) == []
    assert [row for row in taken if row["id"] in traffic.failed] == []
    # One that no worker has begun was in the queue of one that was killed.
    alone = traffic.failed.keys() - {row["id"] for row in begun}
    assert [name for name in alone if not killed.meet(*traffic.failed_at[name])] == []
    # Each of the dead takes no more than there are clients.
    assert len(traffic.failed) <= CLIENTS * len(killed.began)


def untraced_after_traced(taken: list[Row], exact: list[Row]) -> list[Row]:
    """Return the requests that were not counted though an earlier one of their worker was."""
    counted = {row["id"] for row in exact}
    first: dict[int, int] = {}
    for row in taken:
        if row["id"] in counted:
            first[row["pid"]] = min(row["at"], first.get(row["pid"], row["at"]))
    return [
        row
        for row in taken
        if row["id"] not in counted and row["at"] > first.get(row["pid"], row["at"])
    ]


def survive(server: Server, kills: int, seed: int) -> None:
    """Kill, and check the survivors, the index of every worker, and that all of it goes."""
    workers = server.kind.workers
    usual = wait_until_all_have([*wait_until_settled(server, lambda: workers_of(server))])
    objects = held_objects(descendants(server.process.pid))
    before = descriptors_of(server.process.pid)
    traffic, killed = kill_at_random(server, kills, seed, objects)
    healths = wait_until_settled(server, lambda: workers_of(server))
    indexes = [health["kernel_side"]["index"] for health in healths.values()]
    assert len(set(indexes)) == len(indexes)
    # The indexes of the dead were used again.
    assert max(indexes) < 3 * workers + 4 or min(indexes) > 200, indexes
    # For each region that its pool has grown by; for each of the dead it would be ten times that.
    assert descriptors_of(server.process.pid) <= before + 3 * workers + 4
    # One that was told to end while it started may stay, and serve nobody.
    survivors = healths.keys() - killed.began.keys()
    assert survivors
    check_truth(server, Traffic(server, seed + 1), survivors)
    check_survivors(server, traffic, killed)
    healths = wait_until_settled(server, lambda: workers_of(server))
    assert {health["requests_unattributed"] for health in healths.values()} == {0}
    assert wait_until_all_have([*healths], usual) == usual
    objects |= held_objects(descendants(server.process.pid))
    server.process.terminate()
    server.process.wait(30)
    wait_until_gone(objects)
