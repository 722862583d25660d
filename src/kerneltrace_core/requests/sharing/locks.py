"""Locks on folders by flock(2), which the kernel gives up for whoever dies; never waited for long.

A lock belongs to what was opened, and a child that is forked meanwhile has that open as well:
closing frees it only once both have closed. So whoever is done with a lock unlocks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["open_folder", "same_folder", "try_lock", "unlock", "wait_for_lock"]

PAUSE_SECONDS = 0.002


def open_folder(path: Path | str, inside: int | None = None) -> int:
    """Return a descriptor of a folder, of no symbolic link; ``inside`` another, or anywhere."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, dir_fd=inside)


def same_folder(fd: int, path: Path | str, inside: int | None = None) -> bool:
    """Tell whether a path is still the folder that the descriptor is of."""
    try:
        found = os.stat(path, dir_fd=inside, follow_symlinks=False)
    except OSError:
        return False
    opened = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock if nobody is in the way; a lock that it had already is changed, or lost if it is not."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            return False
        raise
    return True


def unlock(fd: int) -> None:
    """Give a lock up, for the children as well that have the descriptor."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def wait_for_lock(fd: int, until: float, *, shared: bool = False) -> bool:
    """Try until a moment of the monotonic clock; False if it was somebody else's all the time."""
    while not try_lock(fd, shared=shared):
        if time.monotonic() > until:
            return False
        time.sleep(PAUSE_SECONDS)
    return True
