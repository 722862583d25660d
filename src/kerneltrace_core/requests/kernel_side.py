"""KernelSide: this process as a member of loaded request programs, with a region of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from kerneltrace_core._native import lib, sharing
from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.requests import members
from kerneltrace_core.requests.plan import Plan
from kerneltrace_core.requests.programs import REGION_BYTES, LoadedPrograms

__all__ = ["Hold", "KernelSide", "OwnPrograms"]

PAGE_BYTES = 4096

logger = logging.getLogger("kerneltrace")


class Hold(Protocol):
    """What keeps the programs loaded for this process, and how it came by them."""

    how: str

    def close(self) -> None:
        """Give it up."""

    def abandon(self) -> None:
        """In a forked child: give up what is the parent's."""


class OwnPrograms:
    """Programs that this process has loaded for itself alone."""

    how = "own"

    def __init__(self, programs: LoadedPrograms) -> None:
        self.close: Callable[[], None] = programs.close
        self.abandon: Callable[[], None] = programs.abandon


class KernelSide:
    """A membership: loaded programs charge what this process's threads do to its region.

    Threads register themselves; only registered threads are charged. ``close`` gives the
    membership up. Not thread-safe, but ``register`` and ``leave`` may be called from any thread
    at any time until ``close``. ``hold`` keeps, and closes, the descriptors too.
    """

    def __init__(
        self,
        hold: Hold,
        plan: Plan,
        *,
        register_fd: int,
        region_fd: int,
        process: int,
        epoch: int,
        used: bool,
    ) -> None:
        self._hold = hold
        self._register_fd = register_fd
        self.how = hold.how
        self.plan = plan
        self.process = process
        self.epoch = epoch
        self.size = REGION_BYTES
        self.address, self.memory = lib.map_region(region_fd, self.size)
        self._closed = False
        try:
            if used:
                # What the index's former member left. Its late work is told apart by the epoch.
                sharing.zero(self.address, self.size)
            # The first run of a program is fifty times slower than the others.
            self.register(0)
            self.leave()
        except BaseException:
            lib.forget_region(self.address, self.size)
            raise

    @classmethod
    def open(
        cls, groups: tuple[str, ...], *, timed: bool = True, btf_path: str | None = None
    ) -> KernelSide:
        """Load and attach a copy of the programs for this process alone; blocks for 30 to 60 ms.

        Raises LoadError, PrivilegeError, UnsupportedError; leaves nothing. See LoadedPrograms.
        """
        programs = LoadedPrograms.load(groups, timed=timed, btf_path=btf_path)
        side: KernelSide | None = None
        try:
            side = cls.join_loaded(OwnPrograms(programs), programs, 0)
            programs.attach()
        except BaseException:
            if side is not None:
                side.close()
            programs.close()
            raise
        return side

    @classmethod
    def join_loaded(cls, hold: Hold, programs: LoadedPrograms, process: int) -> KernelSide:
        """Become the member at an index that has a region, of programs loaded by this process."""
        epoch = members.take_index(programs.register_fd, process)
        if epoch is None:
            raise KernelTraceError(f"join kernel side: index {process} is taken")
        return cls(
            hold,
            programs.plan,
            register_fd=programs.register_fd,
            region_fd=programs.region_fds[process],
            process=process,
            epoch=epoch,
            used=epoch > 1,
        )

    def register(self, thread: int) -> None:
        """Have the calling thread charged through the region's thread entry; 2 us."""
        members.register(self._register_fd, self.process, thread)

    def leave(self) -> None:
        """Have the calling thread charged to nobody any more."""
        members.leave(self._register_fd)

    def close(self) -> None:
        """Leave; the region's memory stays readable and is private now. May be repeated."""
        if self._closed:
            return
        self._closed = True
        with suppress(KernelTraceError, OSError):  # what ends the programs ends this as well
            members.quit_index(self._register_fd, self.process)
        self._hold.close()
        # Requests that are still open read their counters to the end. Pages that nobody wrote
        # to stay untouched: copying them would make them resident.
        pages = range(0, self.size, PAGE_BYTES)
        kept = {page: bytes(self.memory[page : page + PAGE_BYTES]) for page in pages}
        lib.forget_region(self.address, self.size)
        for page, content in kept.items():
            if content.count(0) != len(content):
                self.memory[page : page + len(content)] = content

    def abandon(self) -> None:
        """In a forked child: drop the references; the region was replaced at the fork."""
        if not self._closed:
            self._closed = True
            self._hold.abandon()
