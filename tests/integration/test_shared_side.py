"""One kernel side for all workers: exact numbers in each, and nothing left when they have gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from harness.bpf_objects import descendants, held_objects, nothing_new_remains, wait_until_gone
from harness.pace import time_factor
from harness.tiers import Require
from integration.served.servers import GUNICORN, Kind, Server, end, started
from integration.shared.killing import workers_of
from integration.shared.kinds import CONF, RUN, SITE, WORKERS
from integration.shared.traffic import (
    Traffic,
    check_truth,
    wait_until_settled,
    wait_until_traced,
)
from kerneltrace_core.kernel.btf import preempts_programs
from kerneltrace_core.requests import TracerOptions
from kerneltrace_core.requests.plan import plan_programs, tracepoint_arguments

pytestmark = pytest.mark.integration

BPFFS = Path("/sys/fs/bpf")

HANDED = (
    *("gunicorn", "gunicorn --preload", "uvicorn --workers", "uvicorn --reload"),
    *("hypercorn", "granian"),
)


def our_pins() -> set[str]:
    return {entry.name for entry in BPFFS.glob(f"kerneltrace-{os.geteuid()}-*")}


def wait_until_unpinned(before: set[str]) -> None:
    deadline = time.monotonic() + 20
    while left := our_pins() - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def links_of_one_set() -> int:
    """Return how many programs, each with a link, one loading attaches on this kernel."""
    options = TracerOptions()
    plan = plan_programs(
        options.probes,
        options.syscalls == "time",
        tracepoint_arguments(None),
        preempts_programs(),
    )
    return len(plan.programs)


@pytest.mark.parametrize("name", WORKERS)
def test_workers_share_one_kernel_side_and_count_exactly(
    name: str, open_tmp_path: Path, require: Require
) -> None:
    kind, how = WORKERS[name]
    require(kind.module, probe=kind.installed)
    before = our_pins()

    with started(kind, open_tmp_path, ready="/health") as server:
        healths = wait_until_traced(server, kind.workers)
        objects = held_objects(descendants(server.process.pid))
        check_truth(server, Traffic(server, 1), healths)

    assert {health["kernel_side"]["joined"] for health in healths.values()} == {how}
    indexes = [health["kernel_side"]["index"] for health in healths.values()]
    assert len(set(indexes)) == len(indexes)
    links = [number for what, number in objects if what == "link_id"]
    assert len(links) == links_of_one_set()
    wait_until_gone(objects)
    wait_until_unpinned(before)


@pytest.mark.parametrize("name", HANDED)
def test_workers_without_any_capability_join_what_was_handed_over(
    name: str, open_tmp_path: Path, require: Require
) -> None:
    kind, _ = WORKERS[name]
    require(kind.module, probe=kind.installed)

    with started(kind, open_tmp_path, ready="/health", before=RUN) as server:
        healths = wait_until_traced(server, kind.workers)
        objects = held_objects(descendants(server.process.pid))
        for pid in (server.process.pid, *healths):
            status = Path(f"/proc/{pid}/status").read_text()
            sets = [line.split()[1] for line in status.splitlines() if line.startswith("Cap")]
            assert {int(mask, 16) for mask in sets} == {0}
        check_truth(server, Traffic(server, 2), healths)
        end(server.process)

    assert {health["kernel_side"]["joined"] for health in healths.values()} == {"socket"}
    assert objects
    wait_until_gone(objects)


@pytest.mark.parametrize("way", ["pins", "socket"])
def test_a_reload_of_the_application_finds_the_kernel_side_again(
    way: str, open_tmp_path: Path
) -> None:
    kind, _ = WORKERS["uvicorn --reload"]
    watched = open_tmp_path / "watched.py"
    watched.write_text("VERSION = 1\n")
    before = our_pins()

    with started(
        kind, open_tmp_path, ready="/health", before=RUN if way == "socket" else ()
    ) as server:
        old = wait_until_traced(server, 1)
        watched.write_text("VERSION = 2\n")
        # More than once: a change before the reloader's first look is none to it.
        for later in range(5, 9):
            os.utime(watched, (time.time() + later, time.time() + later))
            time.sleep(0.4)
        server.wait_for_another_worker("/health", next(iter(old)))
        new = wait_until_traced(server, 1)
        check_truth(server, Traffic(server, 3), new)

    assert set(old).isdisjoint(new)
    assert {health["kernel_side"]["joined"] for health in (*old.values(), *new.values())} == {way}
    wait_until_unpinned(before)


THREE_HOOKS = "from kerneltrace_asgi.gunicorn import child_exit, post_fork, when_ready\n"


def wait_until_others(server: Server, old: Collection[int]) -> None:
    """Wait until no worker is left of the old ones."""
    deadline = time.monotonic() + 40 * time_factor()
    while not (now := workers_of(server)) or set(now) & set(old):
        assert time.monotonic() < deadline, server.said()
        time.sleep(0.05)


@pytest.mark.parametrize("hooks", ["all, and the site's own", "three"])
def test_gunicorns_workers_that_a_signal_brings_join_and_count_exactly(
    hooks: str, open_tmp_path: Path
) -> None:
    own = hooks != "three"
    (open_tmp_path / "three.py").write_text(THREE_HOOKS)
    configuration = CONF if own else f"--config {open_tmp_path}/three.py --worker-class asgi"
    kind = Kind("gunicorn", f"{GUNICORN} {configuration} --workers 2 {SITE}", 2)

    with nothing_new_remains(), started(kind, open_tmp_path, ready="/health") as server:
        first = wait_until_settled(server, lambda: workers_of(server))
        os.kill(server.process.pid, signal.SIGHUP)
        wait_until_others(server, first)
        reloaded = wait_until_settled(server, lambda: workers_of(server))
        check_truth(server, Traffic(server, 11), reloaded)
        os.kill(server.process.pid, signal.SIGTTIN)
        server.kind = kind._replace(workers=3)
        more = wait_until_settled(server, lambda: workers_of(server))
        check_truth(server, Traffic(server, 12), more)

    assert set(reloaded) < set(more)
    healths = [*first.values(), *reloaded.values(), *more.values()]
    assert {health["kernel_side"]["joined"] for health in healths} == {"inherited"}
    indexes = [health["kernel_side"]["index"] for health in more.values()]
    assert len(set(indexes)) == len(indexes)
    if own:
        forked = sorted(map(int, (open_tmp_path / "forked").read_text().split()))
        assert forked == sorted({*first, *more})
