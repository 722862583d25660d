"""Programs shared by pins: the first pins, the last unpins, and death in any form is cleaned up."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from harness.bpf_objects import held_objects, wait_until_gone
from kerneltrace_core.doctor.sharing import pins_fact
from kerneltrace_core.kernel.support import Verdict
from kerneltrace_core.requests.sharing.folders import remove_stale
from pin_members import ABI, BPFFS, folders, members, wait_until_unpinned

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("thread_registration", "task_storage", "bpffs"),
]


@pytest.fixture
def before() -> set[Path]:
    """Return the folders that are there already, once those of the dead have gone."""
    remove_stale()
    return folders()


def test_members_that_start_at_once_share_one_side_and_the_last_one_unpins(
    before: set[Path],
) -> None:
    with members(5) as all_of_them:
        told = [member.told() for member in all_of_them]
        objects = held_objects(member.pid for member in all_of_them)
        made = folders() - before
        for member in all_of_them[:-1]:
            member.go()
        kept = folders() - before
        all_of_them[-1].go()
        # It does so itself, or the watcher is faster, which has waited for the same lock.
        wait_until_unpinned(before)

    assert sorted(found["index"] for found in told) == list(range(5))
    assert {found["count"] for found in told} == {100}
    assert len([number for kind, number in objects if kind == "link_id"]) < 16
    assert len(made) == len(kept) == 1
    wait_until_gone(objects)


MAKES = """
made, real = [], pins.new_region
def new_region(regions_fd, index):
    made.append(index)
    return real(regions_fd, index)
pins.new_region = new_region
"""
TELLS_MADE = "print(json.dumps(made), flush=True)"


def test_the_first_members_find_a_region_and_later_ones_share_none(before: set[Path]) -> None:
    def spares() -> list[str]:
        (folder,) = folders() - before
        return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("region_"))

    with members(1) as (first,):
        first.told()
        left = [spares()]
        rounds = []
        for count in (2, 1, 4):
            with members(count, BEFORE=MAKES, AFTER=TELLS_MADE) as joined:
                told = [member.told() for member in joined]
                left.append(spares())
                for member in joined:
                    member.release()
                made = sorted(index for member in joined for index in member.told())
                for member in joined:
                    member.go()
            rounds.append((sorted(found["index"] for found in told), made))
            assert {found["count"] for found in told} == {100}
        first.go()

    # An index that had a member before gets a new region: that one may be held by others still.
    assert rounds == [([1, 2], []), ([1], [1]), ([1, 2, 3, 4], [1, 2, 4])]
    assert left == [["region_1", "region_2", "region_3"], ["region_3"], ["region_3"], []]
    wait_until_unpinned(before)


@pytest.mark.any_kernel
def test_pins_are_for_their_user_alone(before: set[Path]) -> None:
    with members(1) as (member,):
        member.told()
        (folder,) = folders() - before
        modes = {entry.name: entry.stat().st_mode & 0o777 for entry in folder.iterdir()}
        mode = folder.stat().st_mode & 0o777

    assert mode == modes.pop("alive") == 0o700
    assert set(modes.values()) == {0o600}
    wait_until_unpinned(before)


@pytest.mark.parametrize("victims", [pytest.param("first", marks=pytest.mark.any_kernel), "all"])
def test_killed_members_leave_nothing_when_the_last_is_gone(
    victims: str, before: set[Path]
) -> None:
    with members(1) as (first,):
        first.told()
        with members(2) as others:
            found = [other.told()["count"] for other in others]
            objects = held_objects(each.pid for each in (first, *others))
            first.kill()
            with members(1) as (late,):
                assert late.told()["count"] == 100
                late.kill()
            for other in others:
                if victims == "all":
                    other.kill()
                else:
                    other.go()

    assert found == [100, 100]
    wait_until_unpinned(before)
    wait_until_gone(objects)


@pytest.mark.any_kernel
def test_the_next_start_removes_what_was_left_by_those_whose_watcher_was_killed_too(
    before: set[Path],
) -> None:
    with members(1, PATH="/nowhere", ABI=f"{ABI}1") as (unwatched,):
        assert unwatched.told()["count"] == 100
        objects = held_objects([unwatched.pid])
        (stale,) = folders() - before
        unwatched.kill()
        assert stale.exists()

        with members(1) as (fresh,):
            fresh.told()
            assert not stale.exists()
            fresh.go()

    wait_until_unpinned(before)
    wait_until_gone(objects)


@pytest.mark.any_kernel
def test_the_doctor_names_pins_and_says_of_stale_ones_how_to_remove_them(before: set[Path]) -> None:
    with members(1, PATH="/nowhere") as (unwatched,):
        unwatched.told()
        (folder,) = folders() - before
        alive = pins_fact()
        unwatched.kill()
        stale = pins_fact()
    removed = remove_stale()

    assert alive.verdict is Verdict.YES
    assert f"{folder.name} of uid {os.geteuid()}" in alive.reason
    assert stale.verdict is Verdict.NO
    assert f"nobody lives in {folder}" in stale.reason
    assert str(folder) in stale.remedy
    assert folder in removed
    assert folder.name not in pins_fact().reason


@pytest.mark.any_kernel
def test_a_start_takes_over_what_is_whole_though_nobody_lives_in_it(before: set[Path]) -> None:
    with members(1, PATH="/nowhere") as (unwatched,):
        unwatched.told()
        unwatched.kill()
    with members(1, PATH="/nowhere") as (again,):
        assert again.told()["count"] == 100
        again.go()

    assert folders() - before == set()


@pytest.mark.parametrize("left", ["empty", "half"])
@pytest.mark.any_kernel
def test_a_folder_whose_maker_died_while_pinning_is_made_anew(left: str, before: set[Path]) -> None:
    with members(1, PATH="/nowhere") as (unlucky,):
        unlucky.told()
        (folder,) = folders() - before
        unlucky.kill()
    (folder / "register").unlink()
    if left == "empty":
        for entry in folder.iterdir():
            if entry.name == "alive":
                entry.rmdir()
            else:
                entry.unlink()

    with members(2) as both:
        assert [member.told()["count"] for member in both] == [100, 100]
        for member in both:
            member.go()

    wait_until_unpinned(before)


@pytest.mark.any_kernel
def test_another_version_runs_beside_a_running_old_one(before: set[Path]) -> None:
    with members(2, ABI=f"{ABI}2") as old, members(2) as new:
        told = [member.told() for member in (*old, *new)]
        assert len(folders() - before) == 2
        (kept,) = BPFFS.glob(f"kerneltrace-{os.geteuid()}-{ABI}2*")
        for member in new:
            member.go()
        wait_until_unpinned(before | {kept})
        assert kept.exists()
        with members(1, ABI=f"{ABI}2") as (more,):
            assert more.told() == {**told[0], "index": 2}
            more.go()
        for member in old:
            member.go()

    assert [found["count"] for found in told] == [100] * 4
    assert sorted(found["index"] for found in told) == [0, 0, 1, 1]
    wait_until_unpinned(before)


@pytest.mark.any_kernel
def test_who_hangs_with_the_lock_is_not_waited_for_long(before: set[Path]) -> None:
    with members(1) as (member,):
        member.told()
        (folder,) = folders() - before
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            with members(1, WAIT="0.5") as (late,):
                found = late.told()
        finally:
            os.close(held)
        member.go()

    assert "was locked by another process for 0.5 seconds" in found["error"]
    assert found["took"] < 10
    wait_until_unpinned(before)


@pytest.mark.any_kernel
def test_a_member_that_is_stopped_keeps_nobody_from_joining(before: set[Path]) -> None:
    with members(1) as (stopped,):
        stopped.told()
        os.kill(stopped.pid, signal.SIGSTOP)
        with members(1) as (other,):
            found = other.told()
            other.go()
        os.kill(stopped.pid, signal.SIGCONT)
        stopped.go()

    assert found["count"] == 100
    assert folders() - before == set()


@pytest.mark.any_kernel
def test_a_folder_that_others_can_write_to_is_not_trusted(before: set[Path]) -> None:
    with members(1) as (member,):
        member.told()
        (folder,) = folders() - before
        folder.chmod(0o777)
        with members(1) as (other,):
            found = other.told()
        folder.chmod(0o700)
        member.go()

    assert "mode 777, and not this user's own" in found["error"]
    wait_until_unpinned(before)


@pytest.mark.any_kernel
def test_a_symbolic_link_is_not_followed(before: set[Path], tmp_path: Path) -> None:
    path = BPFFS / f"kerneltrace-{os.geteuid()}-{ABI}0"
    path.symlink_to(tmp_path)
    try:
        with members(1) as (member,):
            found = member.told()
    finally:
        path.unlink()

    assert "error" in found
    assert list(tmp_path.iterdir()) == []
    assert folders() - before == set()
