"""Programs that processes of one user share by names in bpffs: the first pins, the last unpins.

A folder ``kerneltrace-<uid>-<hash>`` holds the pins; what has another hash lies beside it. Its
flock guards joining and pinning. Each member holds, for life, a shared flock on the folder
``alive`` in it, so that an exclusive one is to be had exactly when nobody lives: that is the
licence to remove it all, for the member that goes last, for the watcher that waits for it when
they were killed, and for the next start if the watcher was killed too.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from kerneltrace_core._native import sharing
from kerneltrace_core.errors import KernelTraceError, LoadError, UnsupportedError
from kerneltrace_core.requests import members
from kerneltrace_core.requests.kernel_side import KernelSide
from kerneltrace_core.requests.plan import Plan
from kerneltrace_core.requests.programs import LoadedPrograms, new_region
from kerneltrace_core.requests.sharing.abi import abi_hash
from kerneltrace_core.requests.sharing.held import HeldLinks
from kerneltrace_core.requests.sharing.locks import (
    open_folder,
    same_folder,
    try_lock,
    wait_for_lock,
)
from kerneltrace_core.requests.sharing.watcher import start_watcher

__all__ = ["BPFFS", "Folder", "find_folders", "join_pinned", "remove_stale", "usable"]

HOW = "pins"
BPFFS = "/sys/fs/bpf"
PREFIX = "kerneltrace-"
ALIVE = "alive"
LINK = "link_"
# Pinned last: without it the folder is of somebody who died while pinning.
REGISTER = "register"
MEMBERS, REGIONS = "members", "regions"
BPF_FS_MAGIC_PARENT = "bpf"

WAIT_SECONDS = 3.0

logger = logging.getLogger("kerneltrace")


class Folder(NamedTuple):
    """One folder of pins. ``alive`` None: could not tell."""

    path: str
    uid: int
    alive: bool | None


def usable(root: str = BPFFS) -> bool:
    """Tell whether a bpffs is there in which this process may make folders."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            mounted = any(
                line.split(" ")[4] == root and " - bpf " in line for line in lines if " - " in line
            )
    except (OSError, IndexError):
        return False
    return mounted and os.access(root, os.W_OK | os.X_OK)


def join_pinned(groups: tuple[str, ...], *, timed: bool, root: str = BPFFS) -> KernelSide:
    """Join what is pinned for the same programs, or load and pin it; blocks for up to 90 ms.

    Needs CAP_BPF, for the region, and CAP_PERFMON when it loads. Waits for another that is doing
    the same for 3 seconds at most. Raises KernelTraceError; leaves nothing of its own.
    """
    path = f"{root}/{PREFIX}{os.geteuid()}-{abi_hash(groups, timed)}"
    remove_stale(root)
    until = time.monotonic() + WAIT_SECONDS
    while True:
        side = _try_once(path, groups, timed, until)
        if side is not None:
            return side
        if time.monotonic() > until:
            raise KernelTraceError(
                f"join pinned programs: {path} was locked by another process for {WAIT_SECONDS:g} "
                "seconds (see: fuser -v on it)"
            )
        time.sleep(0.005)


def _try_once(path: str, groups: tuple[str, ...], timed: bool, until: float) -> KernelSide | None:
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    with ExitStack() as undo:
        try:
            folder = open_folder(path)
        except FileNotFoundError:
            return None  # the last member of a former life removes it
        undo.callback(os.close, folder)
        _check_owner(folder, path)
        if not wait_for_lock(folder, until) or not same_folder(folder, path):
            return None
        alive = _live_in(path)
        if alive is None:
            return None
        undo.callback(os.close, alive)
        if not os.path.exists(f"{path}/{REGISTER}"):
            _load_and_pin(path, groups, timed)
            if not start_watcher(path, os.fstat(alive).st_ino):
                logger.info(
                    "pins in %s stay if all members are killed at once: no flock(1) here", path
                )
        side = _join(path, groups, timed, alive)
        undo.pop_all()
        os.close(folder)
    return side


def _check_owner(folder: int, path: str) -> None:
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise KernelTraceError(
            f"join pinned programs: {path} is of uid {found.st_uid}, "
            f"mode {stat.S_IMODE(found.st_mode):o}, and not this user's own"
        )


def _live_in(path: str) -> int | None:
    """Take the lock that says this process lives; None if the folder is being removed."""
    with suppress(FileExistsError):
        os.mkdir(f"{path}/{ALIVE}", 0o700)
    try:
        alive = open_folder(f"{path}/{ALIVE}")
    except FileNotFoundError:
        return None
    if try_lock(alive, shared=True) and same_folder(alive, f"{path}/{ALIVE}"):
        return alive
    os.close(alive)
    return None


def _load_and_pin(path: str, groups: tuple[str, ...], timed: bool) -> None:
    """Load and pin, while the folder is locked. What an unlucky one before left goes first."""
    _unlink_pins(path)
    programs = LoadedPrograms.load(groups, timed=timed)
    try:
        programs.attach()
        for program, fd in programs.link_fds().items():
            sharing.pin(fd, f"{path}/{LINK}{program}")
        sharing.pin(programs.members_fd, f"{path}/{MEMBERS}")
        sharing.pin(programs.regions_fd, f"{path}/{REGIONS}")
        sharing.pin(programs.register_fd, f"{path}/{REGISTER}")
        for entry in os.scandir(path):
            if entry.name != ALIVE:
                os.chmod(entry.path, 0o600)
    except BaseException:
        _unlink_pins(path)
        with suppress(OSError):
            os.rmdir(f"{path}/{ALIVE}")
            os.rmdir(path)
        raise
    finally:
        programs.close()


def _join(path: str, groups: tuple[str, ...], timed: bool, alive: int) -> KernelSide:
    names = [name for name in os.listdir(path) if name.startswith(LINK)]
    with ExitStack() as undo:

        def opened(name: str) -> int:
            fd = sharing.open_pinned(f"{path}/{name}")
            undo.callback(os.close, fd)
            return fd

        links = [opened(name) for name in names]
        register_fd, regions_fd = opened(REGISTER), opened(REGIONS)
        index, epoch = _take(register_fd)
        region_fd = new_region(regions_fd, index)
        undo.callback(os.close, region_fd)
        more = [register_fd, region_fd, alive]
        hold = HeldLinks(HOW, links, more, at_close=lambda: _remove_if_last(path))
        side = KernelSide(
            hold,
            Plan.of_programs({name.removeprefix(LINK) for name in names}, groups, timed),
            register_fd=register_fd,
            region_fd=region_fd,
            process=index,
            epoch=epoch,
            used=False,
        )
        undo.pop_all()
        os.close(regions_fd)
    return side


def _take(register_fd: int) -> tuple[int, int]:
    for index in range(sharing.PROCESSES):
        epoch = members.take_index(register_fd, index)
        if epoch is not None:
            return index, epoch
    raise KernelTraceError(
        f"join pinned programs: all {sharing.PROCESSES} indexes are taken by live processes"
    )


# ---- the end ----------------------------------------------------------------------


def _remove_if_last(path: str) -> bool | None:
    """Remove a folder of pins in which nobody lives.

    True: it is gone. False: somebody lives. None: could not tell. Only who has the exclusive
    lock on ``alive`` may remove, and only while the path is still that folder.
    """
    try:
        alive = open_folder(f"{path}/{ALIVE}")
    except FileNotFoundError:
        return _remove_unborn(path)
    except OSError:
        return None
    try:
        if not try_lock(alive):
            return False
        if not same_folder(alive, f"{path}/{ALIVE}"):
            return True
        _unlink_pins(path)
        os.rmdir(f"{path}/{ALIVE}")
        os.rmdir(path)
    except OSError as error:
        logger.debug("remove pins %s: %s", path, error)
        return None
    finally:
        os.close(alive)
    return True


def _remove_unborn(path: str) -> bool | None:
    """Remove a folder whose maker died before it lived in it, or that was half removed."""
    try:
        folder = open_folder(path)
    except OSError:
        return True
    try:
        if not try_lock(folder) or not same_folder(folder, path):
            return False
        _unlink_pins(path)
        os.rmdir(path)
    except OSError:
        return None
    finally:
        os.close(folder)
    return True


def _unlink_pins(path: str) -> None:
    # The mark of completeness first.
    for name in sorted(os.listdir(path), key=lambda name: name != REGISTER):
        if name != ALIVE:
            os.unlink(f"{path}/{name}")


def find_folders(root: str = BPFFS) -> list[Folder]:
    """Return the folders of pins of all users, and whether anybody lives in them."""
    found = []
    try:
        entries = sorted(Path(root).glob(f"{PREFIX}*"))
    except OSError:
        return []
    for entry in entries:
        with suppress(OSError):
            found.append(Folder(str(entry), entry.stat().st_uid, _is_alive(str(entry))))
    return found


def _is_alive(path: str) -> bool | None:
    try:
        alive = open_folder(f"{path}/{ALIVE}")
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


def remove_stale(root: str = BPFFS) -> list[str]:
    """Remove the folders of pins, of this user, in which nobody lives; return their paths.

    Root removes those of all users.
    """
    own = os.geteuid()
    return [
        folder.path
        for folder in find_folders(root)
        if folder.alive is False and own in (0, folder.uid) and _remove_if_last(folder.path)
    ]
