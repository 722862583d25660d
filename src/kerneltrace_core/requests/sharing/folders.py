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

from kerneltrace_core.requests.sharing.locks import open_folder, same_folder, try_lock

__all__ = ["BPFFS", "PREFIX", "Folder", "find_folders", "live_in", "remove_if_last", "remove_stale"]

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


def live_in(path: Path) -> int | None:
    """Take the lock that says this process lives; None if the folder is being removed."""
    with suppress(FileExistsError):
        (path / ALIVE).mkdir(0o700)
    try:
        alive = open_folder(path / ALIVE)
    except FileNotFoundError:
        return None
    if try_lock(alive, shared=True) and same_folder(alive, path / ALIVE):
        return alive
    os.close(alive)
    return None


def remove_if_last(path: Path) -> bool | None:
    """Remove a folder of pins in which nobody lives; neither waits nor raises.

    True: it is gone. False: somebody lives. None: could not tell. Only who has the exclusive
    lock on ``alive`` may remove, and only while the path is still that folder.
    """
    try:
        alive = open_folder(path / ALIVE)
    except FileNotFoundError:
        return _remove_unborn(path)
    except OSError:
        return None
    try:
        if not try_lock(alive):
            return False
        if not same_folder(alive, path / ALIVE):
            return True
        unlink_pins(path)
        (path / ALIVE).rmdir()
        path.rmdir()
    except OSError as error:
        logger.debug("remove pins %s: %s", path, error)
        return None
    finally:
        os.close(alive)
    return True


def _remove_unborn(path: Path) -> bool | None:
    """Remove a folder whose maker died before it lived in it, or that was half removed."""
    try:
        folder = open_folder(path)
    except OSError:
        return True
    try:
        if not try_lock(folder) or not same_folder(folder, path):
            return False
        unlink_pins(path)
        path.rmdir()
    except OSError:
        return None
    finally:
        os.close(folder)
    return True


def unlink_pins(path: Path) -> None:
    """Remove every name but ``alive``, the mark of completeness first."""
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name != REGISTER):
        if entry.name != ALIVE:
            entry.unlink()


def find_folders(root: Path = BPFFS) -> list[Folder]:
    """Return the folders of pins of all users, and whether anybody lives in them."""
    found = []
    try:
        entries = sorted(root.glob(f"{PREFIX}*"))
    except OSError:
        return []
    for entry in entries:
        with suppress(OSError):
            found.append(Folder(entry, entry.stat().st_uid, _is_alive(entry)))
    return found


def _is_alive(path: Path) -> bool | None:
    try:
        alive = open_folder(path / ALIVE)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        return not try_lock(alive)
    except OSError:
        return None
    finally:
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
