"""Locks on folders by flock(2), which the kernel gives up for whoever dies; never waited for long.

A lock belongs to the open descriptor, so closing that, by all processes that have it, frees it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

__all__ = ["open_folder", "same_folder", "try_lock", "wait_for_lock"]

PAUSE_SECONDS = 0.002


def open_folder(path: Path) -> int:
    """Return a descriptor of a folder, of no symbolic link to one."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def same_folder(fd: int, path: Path) -> bool:
    """Tell whether a path is still the folder that the descriptor is of."""
    try:
        found = path.lstat()
    except OSError:
        return False
    opened = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock if nobody is in the way."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            return False
        raise
    return True


def wait_for_lock(fd: int, until: float, *, shared: bool = False) -> bool:
    """Try until a moment of the monotonic clock; False if it was somebody else's all the time."""
    while not try_lock(fd, shared=shared):
        if time.monotonic() > until:
            return False
        time.sleep(PAUSE_SECONDS)
    return True
