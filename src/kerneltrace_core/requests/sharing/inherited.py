"""Programs that a master process loads for the children that it will fork."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack

from kerneltrace_core._native.sharing import PROCESSES
from kerneltrace_core.errors import KernelTraceError, LoadError, PrivilegeError
from kerneltrace_core.requests import members
from kerneltrace_core.requests.kernel_side import KernelSide
from kerneltrace_core.requests.programs import LoadedPrograms, new_region
from kerneltrace_core.requests.sharing.held import HeldLinks

__all__ = ["Inheritance", "inheritance", "prepare", "release"]

HOW = "inherited"

logger = logging.getLogger("kerneltrace")

_prepared: Inheritance | None = None


class Inheritance:
    """Loaded programs with a pool of regions, in the master and, after fork, in its children.

    A child joins at most once and then gives up all the rest, other members' regions too.
    """

    def __init__(self, programs: LoadedPrograms) -> None:
        self._programs = programs
        self._pid = os.getpid()

    @property
    def mine(self) -> bool:
        """Whether this is the process that loaded, not a child of it."""
        return self._pid == os.getpid()

    @property
    def regions(self) -> int:
        """How many processes can join without a capability."""
        return len(self._programs.region_fds)

    def reserve(self, spare: int) -> None:
        """Have so many regions free, in the master; blocks for 20 ms when some have to be made.

        Needs CAP_BPF then. Raises LoadError, PrivilegeError.
        """
        regions = self._programs.region_fds
        found = members.read_members(self._programs.members_fd, regions)
        free = sum(member.available for member in found.values())
        # Where children have put regions of their own there is no descriptor here.
        first = max(regions, default=-1) + 1
        count = min(spare - free, PROCESSES - first)
        if count > 0:
            self._programs.grow(first, count)

    def join(self) -> KernelSide:
        """Become a member: 1 ms from the pool, 25 ms (and CAP_BPF) if that is exhausted.

        Raises KernelTraceError when there is no index left, or no region and no privilege.
        """
        programs = self._programs
        with ExitStack() as undo:
            index, epoch = self._take()
            region_fd = programs.region_fds.get(index)
            fresh = region_fd is None
            try:
                own_fd = (
                    new_region(programs.regions_fd, index)
                    if region_fd is None
                    else os.dup(region_fd)
                )
            except (LoadError, PrivilegeError) as refused:
                members.quit_index(programs.register_fd, index)
                raise KernelTraceError(
                    f"join inherited kernel side: all {len(programs.region_fds)} regions of its "
                    f"pool are taken, and this process may not add one: {refused} "
                    "(let the master prepare more)"
                ) from refused
            undo.callback(os.close, own_fd)
            register_fd = os.dup(programs.register_fd)
            undo.callback(os.close, register_fd)
            links: list[int] = []
            for fd in programs.link_fds().values():
                links.append(os.dup(fd))
                undo.callback(os.close, links[-1])
            side = KernelSide(
                HeldLinks(HOW, links, [register_fd, own_fd]),
                programs.plan,
                register_fd=register_fd,
                region_fd=own_fd,
                process=index,
                epoch=epoch,
                used=not fresh and epoch > 1,
            )
            undo.pop_all()
        if not self.mine:
            release()
        return side

    def _take(self) -> tuple[int, int]:
        pool = tuple(self._programs.region_fds)
        if not pool:
            raise KernelTraceError("join inherited kernel side: it was given up meanwhile")
        # Those with a region first, each process from another of them on, for many of them are
        # taken where many are forked. Then from the other end, where the master will not put new
        # ones meanwhile. To try costs a microsecond, like asking.
        first = os.getpid() % len(pool)
        others = (index for index in reversed(range(PROCESSES)) if index not in pool)
        for index in (*pool[first:], *pool[:first], *others):
            epoch = members.take_index(self._programs.register_fd, index)
            if epoch is not None:
                return index, epoch
        raise KernelTraceError(
            f"join inherited kernel side: all {PROCESSES} indexes are taken by live processes"
        )

    def give_up(self) -> None:
        """In the master: detach once the last member is gone. In a child: close what it has."""
        if self.mine:
            self._programs.close()
        else:
            self._programs.abandon()


def prepare(groups: tuple[str, ...], *, timed: bool, regions: int) -> Inheritance:
    """Load once, in a process that will fork, so that its children join; blocks for 60 ms.

    Later calls return what there is. Raises what ``LoadedPrograms.load`` raises. The programs stay
    attached until this process and all of its children that joined have ended or stopped.
    """
    global _prepared
    if _prepared is None or not _prepared.mine:
        programs = LoadedPrograms.load(groups, timed=timed, regions=regions)
        try:
            programs.attach()
        except BaseException:
            programs.close()
            raise
        release()
        _prepared = Inheritance(programs)
        logger.info(
            "kernel tracing: programs loaded for children, %d regions, groups %s",
            regions,
            ", ".join(programs.plan.groups),
        )
    return _prepared


def inheritance() -> Inheritance | None:
    """Return what this process prepared or inherited and has not given up."""
    return _prepared


def release() -> None:
    """Give up what this process prepared or inherited; may be repeated."""
    global _prepared
    prepared, _prepared = _prepared, None
    if prepared is not None:
        prepared.give_up()
