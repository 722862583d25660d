"""Workers that are killed, at any moment and in any way, leave nothing that is not cleaned up."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from harness.bpf_objects import (
    descendants,
    held_objects,
    nothing_new_remains,
    wait_until_gone,
)
from harness.pace import time_factor
from integration.served.servers import GUNICORN, Kind, started
from integration.shared.killing import survive
from integration.shared.kinds import CONF, RUN, SITE, UVICORN
from integration.shared.kinds import WORKERS as SERVERS
from integration.shared.traffic import Traffic, rows, wait_until_traced

pytestmark = pytest.mark.integration

BPFFS = Path("/sys/fs/bpf")
# `make test-deaths` asks for 500 of each.
ASKED = os.environ.get("KERNELTRACE_TEST_KILLS")
KILLS = int(ASKED or 40)
# A server's name, what it runs under, and how many kills if nobody asks.
KILLED: dict[str, tuple[Kind, tuple[str, ...], int]] = {
    "inherited": (Kind("gunicorn", f"{GUNICORN} {CONF} --workers 4 {SITE}", 4), (), 40),
    "handed over": (Kind("gunicorn", f"{GUNICORN} {CONF} --workers 4 {SITE}", 4), RUN, 40),
    "preloaded": (SERVERS["gunicorn --preload"][0], (), 10),
    "pins": (SERVERS["uvicorn --workers"][0], (), 6),
    "uvicorn handed over": (SERVERS["uvicorn --workers"][0], RUN, 4),
}


# uvicorn looks twice a second who has died.
@pytest.mark.deadline(180 + 2 * KILLS)
@pytest.mark.parametrize("way", KILLED)
def test_random_kills_under_load_leave_the_survivors_exact_and_nothing_behind(
    way: str, open_tmp_path: Path
) -> None:
    kind, before, kills = KILLED[way]

    with nothing_new_remains(), started(kind, open_tmp_path, ready="/health", before=before) as it:
        survive(it, int(ASKED or kills), seed=len(before))


RECYCLING = {
    "pins": (f"{UVICORN} --workers 2 --limit-max-requests 25 {SITE}", "uvicorn", ()),
    "handed over": (f"{UVICORN} --workers 2 --limit-max-requests 25 {SITE}", "uvicorn", RUN),
    "inherited": (f"{GUNICORN} {CONF} --workers 2 --max-requests 25 {SITE}", "gunicorn", ()),
}


@pytest.mark.parametrize("way", RECYCLING)
def test_workers_that_are_replaced_after_some_requests_stay_exact(
    way: str, open_tmp_path: Path
) -> None:
    arguments, module, before = RECYCLING[way]
    recycling = Kind(module, arguments, 2)

    # Required, so that requests wait for a new worker's tracer and none is served untraced.
    with (
        nothing_new_remains(),
        started(
            recycling, open_tmp_path, ready="/health", before=before, KERNELTRACE_REQUIRED="1"
        ) as server,
    ):
        wait_until_traced(server, 2)
        traffic = Traffic(server, 7)
        sent, deadline = 0, time.monotonic() + 60 * time_factor()
        # A worker may look only every second whether it has served enough.
        while sent < 120 or len({row["pid"] for row in rows(open_tmp_path, "begun")}) < 4:
            assert time.monotonic() < deadline, server.said()
            traffic.one()
            sent += 1
        healths = wait_until_traced(server, 2)

    counted = rows(open_tmp_path, "counted")
    assert [row for row in counted if row["counted"] != row["done"]] == []
    assert {health["backend"] for health in healths.values()} == {"bpf"}
    served = {row["id"] for row in rows(open_tmp_path, "begun")} & traffic.answered
    assert served - {row["id"] for row in counted} == set()
    assert len({row["pid"] for row in counted}) >= 4
    # Those who come take the places of those who went, or ones at the other end.
    indexes = [health["kernel_side"]["index"] for health in healths.values()]
    assert [index for index in indexes if 6 <= index < 250] == []


@pytest.mark.parametrize("way", ["inherited", "pins", "socket"])
def test_all_killed_at_once_leave_nothing(way: str, open_tmp_path: Path) -> None:
    name = "uvicorn --workers" if way == "pins" else "gunicorn"
    pins = set(BPFFS.glob(f"kerneltrace-{os.geteuid()}-*"))

    with (
        nothing_new_remains(),
        started(
            SERVERS[name][0], open_tmp_path, ready="/health", before=RUN if way == "socket" else ()
        ) as server,
    ):
        healths = wait_until_traced(server, SERVERS[name][0].workers)
        processes = descendants(server.process.pid)
        objects = held_objects(processes)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait(20)

    assert {health["kernel_side"]["joined"] for health in healths.values()} == {way}
    assert len(processes) > 2
    wait_until_gone(objects)
    deadline = time.monotonic() + 20
    while set(BPFFS.glob(f"kerneltrace-{os.geteuid()}-*")) - pins:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("before", [(), RUN], ids=["inherited", "handed over"])
def test_a_master_that_is_upgraded_in_place_leaves_the_old_one_and_joins_anew(
    before: tuple[str, ...], open_tmp_path: Path
) -> None:
    pidfile = open_tmp_path / "pid"
    arguments = f"{GUNICORN} {CONF} --workers 2 --pid {pidfile} {SITE}"
    kind = Kind("integration.shared.upgraded.gunicorn_main", arguments, 2)

    with started(kind, open_tmp_path, ready="/health", before=before) as server:
        old = wait_until_traced(server, 2)
        objects = held_objects(descendants(server.process.pid))
        os.kill(server.process.pid, signal.SIGUSR2)
        deadline = time.monotonic() + 40
        while not (second := pidfile.with_name("pid.2")).exists() or not second.read_text():
            assert time.monotonic() < deadline, server.said()
            time.sleep(0.05)
        new_master = int(second.read_text())
        os.kill(server.process.pid, signal.SIGQUIT)
        server.process.wait(30)
        try:
            new = wait_until_traced(server, 2)
            objects |= held_objects(descendants(new_master))
            traffic = Traffic(server, 9)
            for _ in range(20):
                traffic.one()
        finally:
            os.kill(new_master, signal.SIGTERM)

    assert traffic.failed == {}
    joined = {health["kernel_side"]["joined"] for health in (*old.values(), *new.values())}
    assert joined == ({"socket"} if before else {"inherited"})
    counted = rows(open_tmp_path, "counted")
    assert [row for row in counted if row["counted"] not in (None, row["done"])] == []
    wait_until_gone(objects)
