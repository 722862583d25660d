"""Joining by pins while others die, fork, raise, or mean harm; each time nothing is left of it."""

from __future__ import annotations

import fcntl
import os
import random
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from harness.bpf_objects import held_objects, nothing_new_remains, wait_until_gone
from harness.interpreters import AS_NOBODY, NOBODY, an_open_interpreter, open_interpreter
from harness.tiers import Require
from kerneltrace_core.requests.sharing.folders import remove_stale
from pin_members import ABI, BPFFS, Member, folders, members, wait_until_unpinned

pytestmark = [pytest.mark.kernel, pytest.mark.needs("thread_registration", "task_storage")]

# `make test-deaths` asks for 500.
KILLS = int(os.environ.get("KERNELTRACE_TEST_KILLS", "30"))
AT_ONCE = 4
# Longer than a process takes from its start until it has joined.
LONGEST_SECONDS = 0.5


@pytest.fixture(autouse=True)
def before(require: Require) -> set[Path]:
    """Return the folders that are there already."""
    require("bpffs")
    remove_stale()
    return folders()


def kill_at_random_while_they_join() -> list[dict[str, Any]]:
    """Kill members, at last all of them; return what the last ones that lived told."""
    choice = random.Random(7)
    alive: list[Member] = []
    try:
        for _ in range(KILLS):
            while len(alive) < AT_ONCE:
                alive.append(Member())
            time.sleep(choice.random() * LONGEST_SECONDS)
            alive.pop(choice.randrange(len(alive))).kill()
        told = [member.told() for member in alive]
        objects = held_objects(member.pid for member in alive)
    finally:
        for member in alive:
            member.kill()
    wait_until_gone(objects)
    return told


@pytest.mark.deadline(60 + KILLS)
def test_random_kills_of_those_that_join_leave_the_others_exact_and_nothing_behind(
    before: set[Path],
) -> None:
    with nothing_new_remains():
        told = kill_at_random_while_they_join()
        wait_until_unpinned(before)

    assert [found.get("count") for found in told] == [100] * (AT_ONCE - 1), told


def test_those_who_come_while_the_last_ones_go_are_each_exact(before: set[Path]) -> None:
    told = []
    with ExitStack() as everybody:
        here: list[Member] = []
        for _ in range(8):
            coming = everybody.enter_context(members(3))
            time.sleep(LONGEST_SECONDS * len(told) / 24)  # from before their join to after it
            for member in here:
                member.release()
            told += [member.told() for member in coming]
            for member in here:
                member.go()
            here = coming

    assert [found.get("count") for found in told] == [100] * 24, told
    wait_until_unpinned(before)


# Before the process lives in the folder that it has made: the next one takes that over.
EARLY = ("open_folder", "wait_for_lock", "same_folder", "live_in", "try_lock")

# Each function that a join calls raises, once, before it does anything: as a signal's handler may.
INTERRUPTED = """
import resource
from kerneltrace_core._native import lib, sharing
from kerneltrace_core.requests.sharing import locks

class Interrupted(BaseException):
    pass

STEPS = [
    (pins, "remove_stale"), (pins, "open_folder"), (pins, "wait_for_lock"), (pins, "same_folder"),
    (pins, "live_in"), (folders, "open_folder"), (folders, "try_lock"), (folders, "same_folder"),
    (pins, "is_whole"), (pins, "unlink_pins"), (pins.LoadedPrograms, "attach"),
    (pins.members, "take_index"), (sharing, "pin"), (os, "chmod"), (os, "dup"),
    (pins, "start_watcher"), (sharing, "open_pinned"), (pins, "HeldLinks"), (pins, "KernelSide"),
    (lib, "map_region"), (pins.members, "register"), (pins.members, "leave"),
    (lib, "create_region_map"), (sharing, "place_maps"), (pins.Plan, "of_programs"),
]

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def interrupt(owner, name):
    real = owner.__dict__[name]
    def raises(*arguments, **options):
        raise Interrupted
    setattr(owner, name, raises)
    begin = descriptors()
    try:
        pins.join_pinned(("sched", "syscalls"), timed=True)
    except Interrupted:
        said = "interrupted"
    else:
        said = "joined"
    finally:
        setattr(owner, name, real)
    left = sorted(str(path) for path in folders.BPFFS.glob("*" + os.environ["ABI"]))
    return name, said, descriptors() - begin, left
"""


def test_an_exception_at_any_step_of_the_first_to_join_leaves_nothing(before: set[Path]) -> None:
    script = INTERRUPTED + "print(json.dumps([interrupt(*step) for step in STEPS]), flush=True)"

    with members(1, BEFORE=script) as (member,):
        steps = member.told()
        after = member.told()
        member.go()

    wrong = [step for step in steps if step[1:3] != ["interrupted", 0] and step[1] != "joined"]
    assert wrong == []
    assert [step for step in steps if step[3] and step[0] not in EARLY] == []
    assert len([step for step in steps if step[1] == "interrupted"]) > 20
    assert after["count"] == 100
    assert folders() - before == set()


def test_an_exception_at_any_step_of_a_later_one_takes_nothing_from_the_others(
    before: set[Path],
) -> None:
    script = (
        "STEPS = [(pins.Path, 'unlink'), *STEPS]\n"
        "print(json.dumps([interrupt(*step) for step in STEPS]), flush=True)"
    )

    with members(1) as (first,):
        assert first.told()["count"] == 100
        with members(1, BEFORE=INTERRUPTED + script) as (member,):
            steps = member.told()
            after = member.told()
            member.go()
        kept = folders() - before
        first.go()

    assert steps[0][:3] == ["unlink", "interrupted", 0]
    assert [step for step in steps if step[1] == "interrupted" and step[2] != 0] == []
    assert len([step for step in steps if step[1] == "interrupted"]) > 10
    assert {len(step[3]) for step in steps} == {1}
    assert after["count"] == 100
    assert len(kept) == 1
    assert folders() - before == set()


FORKS_WHILE = """
import signal, threading
real = pins.{step}
def forks(*arguments, **options):
    found = real(*arguments, **options)
    if not os.fork():
        # It lives on, with all that was open at the time.
        signal.pause()
    return found
pins.{step} = forks
"""
END_CHILDREN = """
import glob, signal
side.close()
print(json.dumps(sorted(map(str, folders.BPFFS.glob("*" + os.environ["ABI"])))), flush=True)
for path in glob.glob("/proc/self/task/*/children"):
    for child in open(path).read().split():
        os.kill(int(child), signal.SIGKILL)
        os.waitpid(int(child), 0)
"""


@pytest.mark.parametrize("step", ["same_folder", "live_in", "_load_and_pin", "_join"])
def test_a_child_forked_in_the_middle_of_joining_locks_nobody_out(
    step: str, before: set[Path]
) -> None:
    variables = {"BEFORE": FORKS_WHILE.format(step=step), "AFTER": END_CHILDREN}
    with members(1, **variables) as (forks,):
        assert forks.told()["count"] == 100
        with members(2, WAIT="1") as others:
            told = [other.told() for other in others]
            for other in others:
                other.go()
        forks.release()
        left = forks.told()
        forks.process.wait(30)

    assert [found.get("count") for found in told] == [100, 100], told
    assert left == []
    assert folders() - before == set()


BECOMES = """
os.execv(sys.executable, [sys.executable, "-c", '''
import os, time
names = []
for name in os.listdir("/proc/self/fd"):
    try:
        names.append(os.readlink("/proc/self/fd/" + name))
    except OSError:
        pass
import json
print(json.dumps([name for name in names if "bpf" in name or "kerneltrace" in name]), flush=True)
time.sleep(60)
'''])
"""


def test_a_member_that_becomes_another_program_takes_nothing_along(before: set[Path]) -> None:
    with members(1, AFTER=BECOMES) as (member,):
        assert member.told()["count"] == 100
        objects = held_objects([member.pid])
        member.release()
        taken = member.told()
        # It lives; what it was is gone.
        wait_until_unpinned(before)
        wait_until_gone(objects)
        assert member.process.poll() is None

    assert taken == []


RUNS = """
import subprocess
done = subprocess.run(
    [sys.executable, "-c", "import os; print([os.readlink(f'/proc/self/fd/{n}') "
     "for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')])"],
    close_fds=False, capture_output=True, text=True,
)
print(json.dumps(done.stdout + done.stderr), flush=True)
"""


def test_a_program_that_a_member_runs_inherits_no_descriptor_of_it(before: set[Path]) -> None:
    with members(1, AFTER=RUNS) as (member,):
        member.told()
        member.release()
        said = str(member.told())

    assert said.startswith("['")
    assert "bpf" not in said
    assert "alive" not in said
    wait_until_unpinned(before)


def test_two_users_have_each_their_own_and_neither_sees_the_others(
    before: set[Path], require: Require
) -> None:
    require("an interpreter for uid 65534", probe=an_open_interpreter)
    two = "+bpf,+perfmon"
    capabilities = (f"--inh-caps={two}", f"--ambient-caps={two}", f"--bounding-set=-all,{two}")
    as_nobody = (*AS_NOBODY, *capabilities, str(open_interpreter()))

    with members(2) as roots, members(2, *as_nobody) as others:
        told = [member.told() for member in (*roots, *others)]
        made = {int(path.name.split("-")[1]) for path in folders() - before}
        remove_stale()  # root's, of those in which nobody lives
        kept = folders() - before
        for member in (*others, *roots):
            member.go()

    assert [found.get("count") for found in told] == [100] * 4, told
    assert sorted(found["index"] for found in told) == [0, 0, 1, 1]
    assert made == {0, NOBODY}
    assert len(kept) == 2
    wait_until_unpinned(before)


@pytest.mark.needs("capability:cap_chown")
def test_a_folder_of_another_user_in_ones_own_place_is_not_trusted(before: set[Path]) -> None:
    path = BPFFS / f"kerneltrace-{os.geteuid()}-{ABI}0"
    path.mkdir(0o700)
    (path / "alive").mkdir(0o700)
    os.chown(path, NOBODY, NOBODY)
    lives = os.open(path / "alive", os.O_RDONLY)
    fcntl.flock(lives, fcntl.LOCK_SH)  # or it would be removed as nobody's
    try:
        with members(1) as (member,):
            found = member.told()
    finally:
        os.close(lives)

    assert f"is of uid {NOBODY}, mode 700, and not this user's own" in found["error"]
    remove_stale()
    assert folders() - before == set()


def test_more_members_than_there_are_indexes_are_told_so(before: set[Path]) -> None:
    few = "pins.sharing.PROCESSES, pins.SPARES = 2, 1"
    with members(2, BEFORE=few) as both:
        assert [member.told()["count"] for member in both] == [100, 100]
        with members(1, BEFORE=few) as (third,):
            found = third.told()
        both[0].kill()
        with members(1, BEFORE=few) as (later,):
            assert later.told()["count"] == 100

    assert "all 2 indexes are taken by live processes" in found["error"]
    wait_until_unpinned(before)
