"""Django under real servers: each request has exactly its own numbers, whoever serves it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.tiers import Require
from integration.served.run import (
    ADDED,
    CHAINS,
    COUNTED,
    HEADS,
    LEAST,
    VIEWS,
    Run,
    serve,
    unbalanced,
    wrongs_of,
)
from integration.served.servers import KINDS, started
from traced import close_to

pytestmark = pytest.mark.integration

BUSY = "/alone/-/busy"

# A worker of gunicorn asks for its parent all the time.
ONLY_JOBS = tuple(name for name in COUNTED if name != "getppid")

Served = Callable[[str], Run]


@pytest.fixture(scope="module")
def served_once(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Return a function that runs a server of a kind; each is run once."""
    runs: dict[str, Run | Exception] = {}

    def attempt(name: str) -> Run | Exception:
        try:
            with started(KINDS[name], tmp_path_factory.mktemp(name), ready=BUSY) as server:
                return serve(server)
        except Exception as error:  # noqa: BLE001 - what one server does is told by each of its tests
            return error

    def run(name: str) -> Run:
        if name not in runs:
            runs[name] = attempt(name)
        found = runs[name]
        if isinstance(found, Exception):
            raise found
        return found

    return run


@pytest.fixture
def served(require: Require, served_once: Served) -> Served:
    """Do the same where the server is installed and the kernel can be traced."""

    def run(name: str) -> Run:
        require("thread_registration")
        require(f"installed:{KINDS[name].module}", probe=KINDS[name].installed)
        return served_once(name)

    return run


@pytest.mark.parametrize("name", KINDS)
def test_every_request_is_answered_and_told_of_once(served: Served, name: str) -> None:
    run = served(name)

    assert len(run.workers) == KINDS[name].workers
    wrong = {
        path: status
        for path, status in run.statuses.items()
        if status != (500 if "_error/" in path else 200)
    }
    assert wrong == {}
    told = Counter(row["path"] for row in run.rows)
    assert {path: told[path] for path in run.statuses} == dict.fromkeys(run.statuses, 1)
    assert {row["pid"] for row in run.rows} == run.workers


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", KINDS)
def test_a_request_is_charged_its_own_work_and_no_other(
    served: Served, name: str, chain: str, view: str
) -> None:
    rows = served(name).of(chain, view)

    assert rows
    for row in rows:
        units = int(row["path"].rpartition("/")[2])
        whole = not (view in HEADS and units == LEAST)  # else its content may not be wanted
        assert row["done"] == units + ADDED[chain] or not whole
    assert [wrong for row in rows for wrong in wrongs_of(row)] == []


@pytest.mark.parametrize("name", KINDS)
def test_a_client_that_leaves_ends_its_request_with_all_of_its_work(
    served: Served, name: str
) -> None:
    run = served(name)
    (row,) = run.of("alone", "async_left" if KINDS[name].asgi else "sync_left")

    assert row["done"] > 1
    assert wrongs_of(row) == []


@pytest.mark.parametrize("name", KINDS)
def test_nothing_of_a_request_is_late_or_nobodys(served: Served, name: str) -> None:
    run = served(name)

    for pid in run.workers:
        before, after = run.before[pid], run.after[pid]
        for counted in ONLY_JOBS:
            # Of a thread that never worked for a request nobody knows what it does outside of one.
            done = after["nobodys"][counted] - before["nobodys"][counted]
            seen = after["unattributed"][counted] - before["unattributed"][counted]
            assert 0 <= seen <= done
            assert after["late"][counted] == before["late"][counted]
        assert after["health"]["status"] == "ok"
        assert after["health"]["threads_refused"] == 0
        assert after["health"]["requests_open"] == 0


@pytest.mark.parametrize("name", KINDS)
def test_the_parts_of_a_request_make_its_whole(served: Served, name: str) -> None:
    assert [wrong for row in served(name).rows for wrong in unbalanced(row)] == []


@pytest.mark.parametrize("name", KINDS)
def test_a_sleep_is_time_blocked_by_sleep(served: Served, name: str) -> None:
    rows = served(name).of("alone", "slept")

    right = []
    for row in rows:
        asked_ns = int(row["path"].rpartition("/")[2]) * 1_000_000
        measured_ns, found_ns = row["measured"]["blocked_ns"], slept_ns(row)
        # It sleeps until a moment, which comes nearer while it does not yet sleep; and what it
        # waits for afterwards, such as the GIL, is blocked time too, but no sleep.
        assert asked_ns - row["measured"]["running_ns"] <= found_ns
        assert found_ns <= measured_ns or close_to(found_ns, measured_ns)
        right.append(close_to(found_ns, measured_ns))
    assert any(right), rows


def slept_ns(row: dict[str, Any]) -> int:
    charged = row["charged"]
    causes = [charged[field] or {} for field in ("blocked_by", "thread_blocked_by")]
    return sum(int(each.get("sleep", 0)) for each in causes)


def test_the_master_that_loaded_the_site_traces_nothing(served: Served) -> None:
    run = served("gunicorn-preload")

    assert run.parent not in {row["pid"] for row in run.rows}
    assert len({row["pid"] for row in run.rows}) == 4


def test_after_a_reload_requests_are_traced_as_before(require: Require, tmp_path: Path) -> None:
    require("thread_registration")
    watched = tmp_path / "watched_by_runserver.py"
    watched.write_text("")
    variables = {"SERVED_WATCHED_MODULE": watched.stem, "SERVED_KERNELTRACE": '{"REQUIRED": true}'}

    with started(KINDS["runserver"], tmp_path, ready=BUSY, **variables) as server:
        first = server.ask("/alone/sync_view/0/23")
        server.wait_for({"/alone/sync_view/0/23"})
        os.utime(watched, (time.time() + 5, time.time() + 5))
        server.wait_for_another_worker(BUSY, server.rows()[0]["pid"])
        second = server.ask("/alone/async_view/1/42")
        rows = {row["path"]: row for row in server.wait_for({"/alone/async_view/1/42"})}

    assert (first.status, second.status) == (200, 200)
    assert [wrong for row in rows.values() for wrong in wrongs_of(row)] == []
    pids = [row["pid"] for row in rows.values()]
    assert len(set(pids)) == 2
    assert server.process.pid not in pids
