"""LoadedPrograms: the request programs, loaded and attached by this process, and their maps."""

from __future__ import annotations

import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from kerneltrace_core._native import lib, sharing
from kerneltrace_core._native.held import LibbpfLink
from kerneltrace_core.bpf.object import BpfObject, builtin_object
from kerneltrace_core.errors import LoadError, PrivilegeError, UnsupportedError
from kerneltrace_core.kernel.btf import preempts_programs
from kerneltrace_core.requests import layout
from kerneltrace_core.requests.plan import (
    EVERY_TRACEPOINT,
    Plan,
    plan_programs,
    tracepoint_arguments,
)

__all__ = ["REGION_BYTES", "LoadedPrograms", "new_region"]

REGION_BYTES = layout.SLOTS_OFFSET + layout.SLOTS * layout.SLOT_BYTES

logger = logging.getLogger("kerneltrace")


def _kept(fd: int) -> int:
    try:
        return os.dup(fd)
    except OSError as error:
        raise LoadError(f"load request probes: {error.strerror}", errno=error.errno) from error


def new_region(regions_fd: int, index: int) -> int:
    """Create a region, put it at an index, return its descriptor. Waits for RCU, 8 to 21 ms.

    Needs CAP_BPF. Raises LoadError, PrivilegeError.
    """
    region_fd = lib.create_region_map(REGION_BYTES)
    try:
        sharing.place_maps(regions_fd, index, [region_fd])
    except BaseException:
        os.close(region_fd)
        raise
    return region_fd


class LoadedPrograms:
    """The programs and the maps that they share with their members.

    Made by ``load``, which blocks for 30 to 60 ms and needs CAP_BPF and CAP_PERFMON (or root);
    least kernel 5.14 (programs of type syscall), with BTF. ``region_fds`` are the regions that
    exist already, by index. ``close`` gives up this process's part; when all that hold descriptors
    of the links have, the kernel detaches. Not thread-safe.

    Once attached it is a few descriptors: the links keep the programs, and these their maps.
    """

    def __init__(
        self, programs: BpfObject, plan: Plan, regions_fd: int, region_fds: dict[int, int]
    ) -> None:
        self._object = programs
        self._links: dict[str, LibbpfLink] = {}
        self.closed = False
        self.plan = plan
        self.regions_fd = regions_fd
        self.region_fds = region_fds
        with ExitStack() as undo:
            self.register_fd = _kept(programs.program_fd("kt_register"))
            undo.callback(os.close, self.register_fd)
            self.members_fd = _kept(programs.map_fd("kt_members"))
            undo.pop_all()

    @classmethod
    def load(
        cls, groups: tuple[str, ...], *, timed: bool, regions: int = 1, btf_path: str | None = None
    ) -> LoadedPrograms:
        """Load, with so many regions, and attach nothing yet.

        Raises LoadError, PrivilegeError, UnsupportedError; leaves nothing.
        """
        if lib.ABI != layout.ABI:
            raise UnsupportedError(
                f"load request probes: compiled part has ABI {lib.ABI}, Python has {layout.ABI} "
                "(rebuild or reinstall kerneltrace)"
            )
        # Asking BTF first costs as much as a third of the load, and today's kernels have it all.
        twice = preempts_programs(btf_path)
        hoped = plan_programs(groups, timed, EVERY_TRACEPOINT, twice)
        try:
            return cls._load(hoped, regions, btf_path)
        # A tracepoint that vmlinux lacks is searched for in the modules' types, for which libbpf
        # needs CAP_SYS_ADMIN: without it the answer is EPERM.
        except (LoadError, PrivilegeError) as refused:
            if refused.errno in (errno.EMFILE, errno.ENFILE):
                raise
            possible = plan_programs(groups, timed, tracepoint_arguments(btf_path), twice)
            if possible == hoped:
                raise
            logger.info("request probes: %s; loading without", str(refused).partition("\n")[0])
            return cls._load(possible, regions, btf_path)

    @classmethod
    def _load(cls, plan: Plan, regions: int, btf_path: str | None) -> LoadedPrograms:
        data = builtin_object("requests")
        with ExitStack() as undo:
            programs = BpfObject(data, "requests", btf_path=btf_path)
            undo.callback(programs.close)
            programs.select({*plan.programs, "kt_register"})
            programs.set_variable("kt_socket_tracepoints", int(plan.sockets))
            programs.set_variable("kt_calls_untimed", int(not plan.timed))
            programs.set_variable("kt_second_copies", int(plan.second_copies))
            programs.set_variable("kt_own_sockets", int("net" in plan.groups))
            programs.resize_map("kt_cpus", lib.possible_cpus())
            if "block" not in plan.groups:
                programs.omit_map("kt_bios")
            if not plan.sockets and "net" not in plan.groups:
                programs.omit_map("kt_sockets")
            region_fds: list[int] = []
            for _ in range(regions):
                region_fds.append(lib.create_region_map(REGION_BYTES))
                undo.callback(os.close, region_fds[-1])
            regions_fd = lib.create_outer_map(sharing.PROCESSES, region_fds[0])
            undo.callback(os.close, regions_fd)
            programs.use_map("kt_regions", regions_fd)
            # The update waits 10 ms for an RCU grace period: meanwhile the programs are loaded.
            with ThreadPoolExecutor(1, "kerneltrace-region") as other:
                placed = other.submit(sharing.place_maps, regions_fd, 0, region_fds)
                programs.load()
            placed.result()
            loaded = cls(programs, plan, regions_fd, dict(enumerate(region_fds)))
            undo.pop_all()
            return loaded

    def attach(self) -> None:
        """Attach every program. Raises AttachError, PrivilegeError; the caller closes."""
        for program in self.plan.programs:
            self._object.attach(program)
        # A megabyte and thirty descriptors less, here and in all children.
        self._links = self._object.take_links()
        self._object.close()
        lib.trim_memory()

    def grow(self, first: int, count: int) -> None:
        """Add regions from an index on, with one wait for RCU. Needs CAP_BPF."""
        with ExitStack() as undo:
            added: list[int] = []
            for _ in range(count):
                added.append(lib.create_region_map(REGION_BYTES))
                undo.callback(os.close, added[-1])
            sharing.place_maps(self.regions_fd, first, added)
            undo.pop_all()
        self.region_fds.update(enumerate(added, first))

    def link_fds(self) -> dict[str, int]:
        """Return the descriptors of the links by program; they are kept here."""
        return {program: link.fd for program, link in self._links.items()}

    def fds(self) -> list[int]:
        """Return the descriptors of all that is kept here, attached programs' links too."""
        return [*self._kept_fds(), *self.link_fds().values()]

    def _kept_fds(self) -> tuple[int, ...]:
        return self.register_fd, self.members_fd, self.regions_fd, *self.region_fds.values()

    def close(self) -> None:
        """Detach, unless other processes hold the links too, and free. May be repeated."""
        if not self.closed:
            self._object.close()
            self._close_rest()

    def abandon(self) -> None:
        """In a forked child: drop the references, and touch nothing else. May be repeated."""
        if not self.closed:
            self._object.abandon()
            self._close_rest()

    def _close_rest(self) -> None:
        self.closed = True
        while self._links:
            self._links.popitem()[1].end()  # the newest first
        for fd in self._kept_fds():
            os.close(fd)
        self.region_fds.clear()
