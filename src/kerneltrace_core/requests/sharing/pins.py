"""Programs that processes of one user share by names in bpffs: the first pins, the last unpins.

A folder ``kerneltrace-<uid>-<hash>`` holds the pins; what has another hash lies beside it. Its
flock guards loading and pinning, and is held for no more. The first few members find a region that
came with the load; that of a later one waits for RCU, and many that start at once wait for the same
grace period.
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
from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.requests import members
from kerneltrace_core.requests.kernel_side import KernelSide
from kerneltrace_core.requests.plan import Plan
from kerneltrace_core.requests.programs import LoadedPrograms, new_region
from kerneltrace_core.requests.sharing.abi import abi_hash
from kerneltrace_core.requests.sharing.folders import (
    ALIVE,
    BPFFS,
    PREFIX,
    REGISTER,
    is_whole,
    live_in,
    remove_if_last,
    remove_stale,
    unlink_pins,
)
from kerneltrace_core.requests.sharing.held import HeldLinks
from kerneltrace_core.requests.sharing.locks import (
    open_folder,
    same_folder,
    unlock,
    wait_for_lock,
)
from kerneltrace_core.requests.sharing.watcher import start_watcher

__all__ = ["join_pinned", "usable"]

HOW = "pins"
LINK = "link_"
MEMBERS, REGIONS = "members", "regions"
SPARE = "region_"
# For those that start with who loads. What nobody takes stays in the kernel, 2.7 MB each.
SPARES = 3

WAIT_SECONDS = 3.0
AGAIN_SECONDS = 0.005

logger = logging.getLogger("kerneltrace")


class _Seat(NamedTuple):
    """An index that this process has taken, and its region there."""

    process: int
    epoch: int
    region_fd: int


def usable(root: Path = BPFFS) -> bool:
    """Tell whether a bpffs is there in which this process may make folders."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            mounted = any(
                line.split(" ")[4] == str(root) and " - bpf " in line
                for line in lines
                if " - " in line
            )
    except (OSError, IndexError):
        return False
    return mounted and os.access(root, os.W_OK | os.X_OK) and _is_safe(root)


def _is_safe(root: Path) -> bool:
    """Tell whether nobody but this user and root can put another folder in the place of ours."""
    found = root.stat()
    shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    return found.st_uid in (0, os.geteuid()) and not shared


def join_pinned(groups: tuple[str, ...], *, timed: bool, root: Path = BPFFS) -> KernelSide:
    """Join what is pinned for the same programs, in 25 ms, or load and pin it, in up to 90 ms.

    The first few that join do not wait for RCU: 3 ms. Needs CAP_BPF, for the region, and
    CAP_PERFMON when it loads. Waits for another that is loading the same for 3 seconds at most,
    in a thread that may wait. Raises KernelTraceError, OSError; leaves nothing of its own.
    """
    path = root / f"{PREFIX}{os.geteuid()}-{abi_hash(groups, timed)}"
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
        time.sleep(AGAIN_SECONDS)


def _try_once(path: Path, groups: tuple[str, ...], timed: bool, until: float) -> KernelSide | None:
    with suppress(FileExistsError):
        path.mkdir(0o700)
    with ExitStack() as undo, ExitStack() as guarded:
        try:
            folder = open_folder(path)
        except FileNotFoundError:
            return None  # the last member of a former life removes it
        guarded.callback(os.close, folder)
        _check_owner(folder, path)
        if not wait_for_lock(folder, until):
            return None
        guarded.callback(unlock, folder)
        alive = live_in(folder) if same_folder(folder, path) else None
        if alive is None:
            return None
        undo.callback(os.close, alive)
        undo.callback(remove_if_last, path, alive)
        seat = None
        if not is_whole(folder):
            seat = _load_and_pin(path, folder, groups, timed)
            undo.callback(os.close, seat.region_fd)
        # Who lives here needs no lock: what is whole stays so as long as anybody does.
        guarded.close()
        if seat is not None and not start_watcher(path, os.fstat(alive).st_ino):
            logger.info("pins in %s stay if all members are killed at once: no flock(1) here", path)
        side = _join(path, groups, timed, alive, seat)
        undo.pop_all()
    return side


def _check_owner(folder: int, path: Path) -> None:
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise KernelTraceError(
            f"join pinned programs: {path} is of uid {found.st_uid}, "
            f"mode {stat.S_IMODE(found.st_mode):o}, and not this user's own"
        )


def _load_and_pin(path: Path, folder: int, groups: tuple[str, ...], timed: bool) -> _Seat:
    """Load and pin, while the folder is locked. What an unlucky one before left goes first.

    The first member takes a region that came with the load: its own would wait for RCU again.
    """
    unlink_pins(folder)
    programs = LoadedPrograms.load(groups, timed=timed, regions=1 + SPARES)
    try:
        programs.attach()
        epoch = members.take_index(programs.register_fd, 0)
        if epoch is None:
            raise KernelTraceError("join pinned programs: this process cannot become a member")
        for program, fd in programs.link_fds().items():
            sharing.pin(fd, str(path / f"{LINK}{program}"))
        for index in range(1, 1 + SPARES):
            sharing.pin(programs.region_fds[index], str(path / f"{SPARE}{index}"))
        sharing.pin(programs.members_fd, str(path / MEMBERS))
        sharing.pin(programs.regions_fd, str(path / REGIONS))
        sharing.pin(programs.register_fd, str(path / REGISTER))
        for name in os.listdir(folder):
            if name != ALIVE:
                os.chmod(name, 0o600, dir_fd=folder)
        return _Seat(0, epoch, os.dup(programs.region_fds[0]))
    finally:
        programs.close()


def _join(
    path: Path, groups: tuple[str, ...], timed: bool, alive: int, seat: _Seat | None
) -> KernelSide:
    names = [entry.name for entry in path.iterdir() if entry.name.startswith(LINK)]
    with ExitStack() as undo:

        def opened(name: str) -> int:
            fd = sharing.open_pinned(str(path / name))
            undo.callback(os.close, fd)
            return fd

        links = [opened(name) for name in names]
        register_fd = opened(REGISTER)
        if seat is None:
            seat = _sit_down(path, register_fd)
            undo.callback(os.close, seat.region_fd)
        more = [register_fd, seat.region_fd, alive]
        hold = HeldLinks(HOW, links, more, at_close=lambda: remove_if_last(path, alive))
        side = KernelSide(
            hold,
            Plan.of_programs({name.removeprefix(LINK) for name in names}, groups, timed),
            register_fd=register_fd,
            region_fd=seat.region_fd,
            process=seat.process,
            epoch=seat.epoch,
            used=False,
        )
        undo.pop_all()
    return side


def _sit_down(path: Path, register_fd: int) -> _Seat:
    regions_fd = sharing.open_pinned(str(path / REGIONS))
    try:
        index, epoch = _take(register_fd)
        try:
            # With a member before, another process may still hold the region that was there.
            region_fd = _take_spare(path, index) if epoch == 1 else None
            if region_fd is None:
                region_fd = new_region(regions_fd, index)
            return _Seat(index, epoch, region_fd)
        except BaseException:
            members.quit_index(register_fd, index)
            raise
    finally:
        os.close(regions_fd)


def _take_spare(path: Path, index: int) -> int | None:
    """Take the region that came with the load, if there is one, out of others' sight."""
    pinned = path / f"{SPARE}{index}"
    try:
        region_fd = sharing.open_pinned(str(pinned))
    except KernelTraceError:
        return None
    try:
        pinned.unlink()
    except BaseException:
        os.close(region_fd)
        raise
    return region_fd


def _take(register_fd: int) -> tuple[int, int]:
    for index in range(sharing.PROCESSES):
        epoch = members.take_index(register_fd, index)
        if epoch is not None:
            return index, epoch
    raise KernelTraceError(
        f"join pinned programs: all {sharing.PROCESSES} indexes are taken by live processes"
    )
