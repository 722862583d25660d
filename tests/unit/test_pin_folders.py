"""Folders of pins are removed by whoever goes last, and never anything else in their place."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kerneltrace_core.requests.sharing import folders, pins, watcher
from kerneltrace_core.requests.sharing.locks import open_folder, unlock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "kerneltrace-1-x"
    path.mkdir()
    for name in ("link_a", "register"):
        (path / name).write_text("")
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    (path / "alive").mkdir(parents=True)
    (path / "precious").write_text("")
    return path


def opened(path: Path) -> int:
    return open_folder(path)


def live(path: Path) -> int:
    fd = opened(path)
    try:
        alive = folders.live_in(fd)
    finally:
        os.close(fd)
    assert alive is not None
    return alive


def test_only_the_last_one_removes(folder: Path) -> None:
    first, last = live(folder), live(folder)

    kept = folders.remove_if_last(folder, first)
    removed = folders.remove_if_last(folder, last)
    os.close(first)
    os.close(last)

    assert (kept, removed) == (False, True)
    assert not folder.exists()


def test_who_has_gone_last_is_not_kept_alive_by_a_descriptor_that_a_child_has(folder: Path) -> None:
    alive = live(folder)
    of_a_child = os.dup(alive)  # shares the lock, as after a fork

    removed = folders.remove_if_last(folder, alive)
    os.close(alive)
    os.close(of_a_child)

    assert removed is True


def test_a_lock_given_up_is_given_up_for_a_child_as_well(folder: Path) -> None:
    ours = opened(folder)
    fcntl.flock(ours, fcntl.LOCK_EX)
    of_a_child = os.dup(ours)

    unlock(ours)
    os.close(ours)
    theirs = opened(folder)
    fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)

    os.close(theirs)
    os.close(of_a_child)


def test_a_folder_that_is_removed_while_it_is_joined_is_none_to_live_in(folder: Path) -> None:
    fd = opened(folder)
    assert folders.remove_if_last(folder) is True

    found = folders.live_in(fd)
    os.close(fd)

    assert found is None


def test_another_folder_at_the_same_path_is_not_lived_in_by_mistake(folder: Path) -> None:
    fd = opened(folder)
    assert folders.remove_if_last(folder) is True
    folder.mkdir()

    found = folders.live_in(fd)
    os.close(fd)

    assert found is None
    assert list(folder.iterdir()) == []


def test_who_is_born_between_two_looks_is_not_taken_for_unborn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., bool] = folders.try_lock

    def late(fd: int, **options: Any) -> bool:
        (
            folder / "alive"
        ).mkdir()  # as one that came first, and has given up its lock on the folder
        return real(fd, **options)

    monkeypatch.setattr(folders, "try_lock", late)

    removed = folders.remove_if_last(folder)

    assert removed is False
    assert (folder / "register").exists()


@pytest.mark.parametrize("lived", [True, False])
def test_a_link_put_in_the_place_of_a_folder_between_two_looks_is_not_followed(
    lived: bool, folder: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lived:
        (folder / "alive").mkdir()
    real: Callable[..., bool] = folders.try_lock

    def swapped(fd: int, **options: Any) -> bool:
        if not folder.is_symlink():
            folder.rename(folder.with_name("away"))
            folder.symlink_to(victim)
        return real(fd, **options)

    monkeypatch.setattr(folders, "try_lock", swapped)

    folders.remove_if_last(folder)

    assert folder.is_symlink()
    assert {entry.name for entry in victim.iterdir()} == {"alive", "precious"}


def test_a_link_is_no_folder_of_pins(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "kerneltrace-1-y").symlink_to(victim)

    removed = folders.remove_stale(tmp_path)

    assert removed == []
    assert {entry.name for entry in victim.iterdir()} == {"alive", "precious"}


@pytest.mark.parametrize(
    ("mode", "safe"), [(0o700, True), (0o755, True), (0o1777, True), (0o777, False), (0o770, False)]
)
def test_pins_are_made_where_nobody_can_put_another_folder_in_their_place(
    mode: int, safe: bool, tmp_path: Path
) -> None:
    tmp_path.chmod(mode)

    assert pins._is_safe(tmp_path) is safe
    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode


# ---- the watcher, which does the same in sh(1) ---------------------------------------------------

TOOLS = pytest.mark.skipif(
    not all(map(shutil.which, ("sh", "flock", "stat", "rm", "rmdir"))), reason="no flock(1) here"
)
WAIT_SECONDS = 20


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def watched(folder: Path) -> bool:
    """Tell whether a watcher of the folder still runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0] != sys.executable.encode() and str(folder).encode() in words:
                return True
    return False


def before_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str) -> None:
    """Have a shell command run before each run of a tool that is found by its name."""
    tool = tmp_path / "bin" / name
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\n{command}\nexec {shutil.which(name)} "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")


@TOOLS
def test_the_watcher_removes_the_pins_before_the_lock_that_keeps_others_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    before_tool(tmp_path, monkeypatch, "rmdir", f'ls "{folder}" >> "{said}"')
    alive = live(folder)
    assert watcher.start_watcher(folder, os.fstat(alive).st_ino)
    assert watched(folder)
    kept = sorted(entry.name for entry in folder.iterdir())
    os.close(alive)
    wait_until(lambda: not watched(folder))

    assert not folder.exists()
    assert kept == ["alive", "link_a", "register"]
    assert said.read_text() == "alive\n"


@TOOLS
@pytest.mark.parametrize("others", [(), ("link_b",)])
def test_the_watcher_removes_what_one_left_that_was_killed_while_it_removed(
    folder: Path, others: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a busy machine, where it comes to its lock after all of this.
    before_tool(tmp_path, monkeypatch, "flock", "sleep 0.2")
    alive = live(folder)
    assert watcher.start_watcher(folder, os.fstat(alive).st_ino)
    assert watched(folder)
    for name in ("register", "link_a"):
        (folder / name).unlink()
    (folder / "alive").rmdir()
    for name in others:
        (folder / name).write_text("")

    os.close(alive)  # as its death does
    wait_until(lambda: not watched(folder))

    assert folder.exists() == bool(others)


@TOOLS
def test_the_watcher_leaves_a_later_folder_at_the_same_path_alone(folder: Path) -> None:
    alive = live(folder)
    assert watcher.start_watcher(folder, os.fstat(alive).st_ino)
    assert watched(folder)
    folder.rename(folder.with_name("former"))
    folder.mkdir()
    (folder / "alive").mkdir()
    (folder / "register").write_text("")

    os.close(alive)
    wait_until(lambda: not watched(folder))

    assert (folder / "register").exists()
