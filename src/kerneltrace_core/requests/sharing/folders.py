"""Folders of pins: who lives in them, and their removal when nobody does.

Each member holds, for life, a shared flock on the folder ``alive``. An exclusive one is to be had
exactly when nobody lives: that is the licence to remove it all, for the member that goes last, for
the watcher that waits for it when they were killed, and for the next start if the watcher was
killed too.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kerneltrace_core.requests.sharing.locks import open_folder, same_folder, try_lock, unlock

__all__ = [
    "BPFFS",
    "PREFIX",
    "Folder",
    "find_folders",
    "is_whole",
    "live_in",
    "remove_if_last",
    "remove_stale",
]

BPFFS = Path("/sys/fs/bpf")
PREFIX = "kerneltrace-"
ALIVE = "alive"
# Pinned last: without it the folder is of somebody who died while pinning.
REGISTER = "register"

logger = logging.getLogger("kerneltrace")


class Folder(NamedTuple):
    """One folder of pins. ``alive`` None: could not tell."""

    path: Path
    uid: int
    alive: bool | None


def live_in(folder: int) -> int | None:
    """Take the lock that says this process lives; None if the folder is being removed.

    Who has it may rely on the folder: nobody removes it.
    """
    try:
        with suppress(FileExistsError):
            os.mkdir(ALIVE, 0o700, dir_fd=folder)
        alive = open_folder(ALIVE, folder)
    except FileNotFoundError:
        return None
    lives = False
    try:
        lives = try_lock(alive, shared=True) and same_folder(alive, ALIVE, folder)
        return alive if lives else None
    finally:
        if not lives:
            os.close(alive)


def is_whole(folder: int) -> bool:
    """Tell whether all is pinned; certain for who has the folder's lock, or lives in it."""
    return REGISTER in os.listdir(folder)


def remove_if_last(path: Path, alive: int | None = None) -> bool | None:
    """Remove a folder of pins in which nobody lives; neither waits nor raises.

    True: it is gone. False: somebody lives. None: could not tell. Only who has the exclusive
    lock on ``alive`` may remove, and only while the path is still that folder. ``alive``: of the
    caller, who lives there no more. Afterwards it has no lock.
    """
    try:
        folder = open_folder(path)
    except FileNotFoundError:
        return True
    except OSError:
        return None
    # All below is by descriptor: its owner may put something else at the path between two looks.
    try:
        if alive is not None:
            # The caller's own lock is changed, without a moment for the watcher to come first.
            return _remove_unlived(path, folder, alive)
        try:
            opened = open_folder(ALIVE, folder)
        except FileNotFoundError:
            return _remove_unborn(path, folder)
        try:
            return _remove_unlived(path, folder, opened)
        finally:
            os.close(opened)
    except OSError as error:
        logger.debug("remove pins %s: %s", path, error)
        return None
    finally:
        os.close(folder)


def _remove_unlived(path: Path, folder: int, alive: int) -> bool:
    try:
        if not try_lock(alive):
            return False
        if same_folder(alive, ALIVE, folder):
            unlink_pins(folder)
            os.rmdir(ALIVE, dir_fd=folder)
            path.rmdir()
        return True
    finally:
        unlock(alive)


def _remove_unborn(path: Path, folder: int) -> bool:
    """Remove a folder whose maker died before it lived in it, or that was half removed."""
    if not try_lock(folder):
        return False
    try:
        # Under the lock: who makes it lives in it by now.
        if ALIVE in os.listdir(folder):
            return False
        unlink_pins(folder)
        path.rmdir()
        return True
    finally:
        unlock(folder)


def unlink_pins(folder: int) -> None:
    """Remove every name but ``alive``, the mark of completeness first."""
    for name in sorted(os.listdir(folder), key=lambda name: name != REGISTER):
        if name != ALIVE:
            os.unlink(name, dir_fd=folder)


def find_folders(root: Path = BPFFS) -> list[Folder]:
    """Return the folders of pins of all users, and whether anybody lives in them."""
    found = []
    try:
        entries = sorted(root.glob(f"{PREFIX}*"))
    except OSError:
        return []
    for entry in entries:
        with suppress(OSError):
            found.append(Folder(entry, entry.lstat().st_uid, _is_alive(entry)))
    return found


def _is_alive(path: Path) -> bool | None:
    try:
        folder = open_folder(path)
    except OSError:
        return None
    try:
        alive = open_folder(ALIVE, folder)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    finally:
        os.close(folder)
    try:
        return not try_lock(alive)
    except OSError:
        return None
    finally:
        unlock(alive)
        os.close(alive)


def remove_stale(root: Path = BPFFS) -> list[Path]:
    """Remove the folders of pins, of this user, in which nobody lives; return their paths.

    Root removes those of all users.
    """
    own = os.geteuid()
    return [
        folder.path
        for folder in find_folders(root)
        if folder.alive is False and own in (0, folder.uid) and remove_if_last(folder.path)
    ]
