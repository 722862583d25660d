"""KernelSide: the request programs loaded, attached and charging one region."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from struct import Struct

from kerneltrace_core._native import lib
from kerneltrace_core.bpf.object import BpfObject, builtin_object
from kerneltrace_core.errors import KernelTraceError, LoadError, PrivilegeError, UnsupportedError
from kerneltrace_core.requests import layout
from kerneltrace_core.requests.measures import Measures

__all__ = ["KernelSide", "Plan", "plan_programs"]

_REGISTRATION = Struct("<IIII")  # process, thread, leave, done

GROUPS = ("sched", "syscalls", "block", "net", "faults")

# Attached in this order, detached in reverse: the register must be kept (sched) before anything
# reads it. program -> tracepoint.
SCHED = {
    "kt_sched_switch": "sched_switch",
    "kt_sched_waking": "sched_waking",
    "kt_sched_process_fork": "sched_process_fork",
    "kt_sched_process_exec": "sched_process_exec",
}
SOCKETS = {"kt_sock_send": "sock_send_length", "kt_sock_recv": "sock_recv_length"}
PROGRAMS: dict[str, dict[str, str]] = {
    "sched": SCHED,
    "syscalls": {"kt_sys_enter": "sys_enter", "kt_sys_exit": "sys_exit", **SOCKETS},
    "block": {
        "kt_block_bio_queue": "block_bio_queue",
        "kt_block_rq_complete": "block_rq_complete",
        "kt_block_bio_complete": "block_bio_complete",
    },
    "net": {
        **SOCKETS,
        "kt_inet_sock_set_state": "inet_sock_set_state",
        "kt_tcp_retransmit": "tcp_retransmit_skb",
    },
    "faults": {
        "kt_page_fault_user": "page_fault_user",
        "kt_page_fault_kernel": "page_fault_kernel",
    },
}
# Without these a group still measures something; without any other of its tracepoints it does not.
OPTIONAL = frozenset(("sock_send_length", "sock_recv_length", "block_bio_complete"))
PREV_STATE_ARGUMENTS = 4
EVERY_TRACEPOINT: dict[str, int | None] = {
    point: PREV_STATE_ARGUMENTS for points in PROGRAMS.values() for point in points.values()
}
PAGE_BYTES = 4096
PROCESSES = 64  # KT_PROCESSES
REGION_BYTES = layout.SLOTS_OFFSET + layout.SLOTS * layout.SLOT_BYTES

logger = logging.getLogger("kerneltrace")


@dataclass(frozen=True)
class Plan:
    """Which programs to load on this kernel, and why others are left out."""

    programs: tuple[str, ...]
    groups: tuple[str, ...]
    missing: dict[str, str]
    sockets: bool
    timed: bool

    def measures(self) -> Measures:
        """Say what these programs measure."""
        calls = "syscalls" in self.groups
        net = "net" in self.groups
        return Measures(
            backend="bpf",
            ledger=True,
            causes=True,
            processes=True,
            calls=calls,
            call_times=calls and self.timed,
            files=calls,
            net=calls or (net and self.sockets),
            retransmits=net,
            block="block" in self.groups,
            disk_bytes="block" in self.groups,
            faults="faults" in self.groups,
        )


def plan_programs(wanted: tuple[str, ...], timed: bool, arguments: dict[str, int | None]) -> Plan:
    """Choose programs for the groups wanted, given each tracepoint's number of arguments here.

    ``arguments`` holds None for a tracepoint that the kernel does not have. A group that lacks a
    tracepoint is left out and named in ``missing``; without ``sched`` nothing works and
    UnsupportedError is raised.
    """
    programs: dict[str, None] = {}
    groups: list[str] = []
    missing: dict[str, str] = {}
    for group in GROUPS:
        if group != "sched" and group not in wanted:
            continue
        points = PROGRAMS[group]
        lacking = sorted({p for p in points.values() if arguments.get(p) is None} - OPTIONAL)
        if lacking:
            missing[group] = f"this kernel has no tracepoint {', '.join(lacking)}"
            continue
        groups.append(group)
        for program, point in points.items():
            if arguments.get(point) is not None and (timed or program != "kt_sys_enter"):
                programs[program] = None
    if "sched" in missing:
        raise UnsupportedError(f"load request probes: {missing['sched']}")
    if (arguments["sched_switch"] or 0) < PREV_STATE_ARGUMENTS:
        programs = {
            "kt_sched_switch_5_17" if name == "kt_sched_switch" else name: None for name in programs
        }
    sockets = "kt_sock_send" in programs and "kt_sock_recv" in programs
    return Plan(tuple(programs), tuple(groups), missing, sockets, timed)


def tracepoint_arguments(btf_path: str | None) -> dict[str, int | None]:
    """Ask the kernel's BTF for every tracepoint that the groups use."""
    btf = lib.load_btf(btf_path)
    try:
        return {point: lib.tracepoint_arguments(btf, point) for point in EVERY_TRACEPOINT}
    finally:
        lib.free_btf(btf)


class KernelSide:
    """The loaded programs and this process's region.

    Made by ``open``, which blocks for 30 to 60 ms and needs CAP_BPF and CAP_PERFMON (or root);
    least kernel 5.14 (programs of type syscall), with BTF. Threads register themselves; the
    programs charge only registered threads. Close detaches. Not thread-safe, but ``register``
    and ``leave`` may be called from any thread at any time until ``close``.
    """

    process = 0

    def __init__(self, programs: BpfObject, region_fd: int, plan: Plan) -> None:
        self._object = programs
        self._region_fd = region_fd
        self._register_fd = programs.program_fd("kt_register")
        self.plan = plan
        self.size = REGION_BYTES
        self.address, self.memory = lib.map_region(region_fd, self.size)

    @classmethod
    def open(
        cls, groups: tuple[str, ...], *, timed: bool = True, btf_path: str | None = None
    ) -> KernelSide:
        """Load and attach. Raises LoadError, PrivilegeError, UnsupportedError; leaves nothing."""
        if lib.ABI != layout.ABI:
            raise UnsupportedError(
                f"load request probes: compiled part has ABI {lib.ABI}, Python has {layout.ABI} "
                "(rebuild or reinstall kerneltrace)"
            )
        # Asking BTF first costs as much as a third of the load, and today's kernels have it all.
        hoped = plan_programs(groups, timed, EVERY_TRACEPOINT)
        try:
            return cls._open(hoped, btf_path)
        # A tracepoint that vmlinux lacks is searched for in the modules' types, for which libbpf
        # needs CAP_SYS_ADMIN: without it the answer is EPERM.
        except (LoadError, PrivilegeError) as refused:
            possible = plan_programs(groups, timed, tracepoint_arguments(btf_path))
            if possible == hoped:
                raise
            logger.info("request probes: %s; loading without", str(refused).partition("\n")[0])
            return cls._open(possible, btf_path)

    @classmethod
    def _open(cls, plan: Plan, btf_path: str | None) -> KernelSide:
        data = builtin_object("requests")
        with ExitStack() as undo:
            programs = BpfObject(data, "requests", btf_path=btf_path)
            undo.callback(programs.close)
            programs.select({*plan.programs, "kt_register"})
            programs.set_variable("kt_socket_tracepoints", int(plan.sockets))
            programs.set_variable("kt_calls_untimed", int(not plan.timed))
            programs.set_variable("kt_own_sockets", int("net" in plan.groups))
            programs.resize_map("kt_cpus", lib.possible_cpus())
            if "block" not in plan.groups:
                programs.omit_map("kt_bios")
            if not plan.sockets and "net" not in plan.groups:
                programs.omit_map("kt_sockets")
            region_fd = lib.create_region_map(REGION_BYTES)
            undo.callback(os.close, region_fd)
            regions_fd = lib.create_outer_map(PROCESSES, region_fd)
            undo.callback(os.close, regions_fd)
            programs.use_map("kt_regions", regions_fd)
            # The update waits 10 ms for an RCU grace period: meanwhile the programs are loaded.
            with ThreadPoolExecutor(1, "kerneltrace-region") as other:
                placed = other.submit(lib.update_map_u32, regions_fd, cls.process, region_fd)
                programs.load()
            placed.result()
            side = cls(programs, region_fd, plan)
            # The first run of a program is fifty times slower than the others.
            side.register(0)
            side.leave()
            for program in plan.programs:
                programs.attach(program)
            undo.pop_all()
            os.close(regions_fd)  # the programs hold the map
            lib.trim_memory()
            return side

    def _registration(self, thread: int, leave: int, act: str) -> None:
        context = bytearray(_REGISTRATION.pack(self.process, thread, leave, 0))
        lib.run_program(self._register_fd, context, act)
        if not _REGISTRATION.unpack(context)[3]:
            raise KernelTraceError(f"{act}: the kernel has no memory for the thread's storage")

    def register(self, thread: int) -> None:
        """Have the calling thread charged through the region's thread entry; 2 us."""
        self._registration(thread, 0, "register thread")

    def leave(self) -> None:
        """Have the calling thread charged to nobody any more."""
        self._registration(0, 1, "unregister thread")

    def close(self) -> None:
        """Detach, free the programs; the region's memory stays readable and is private now."""
        if self._object.closed:
            return
        self._object.close()
        # Requests that are still open read their counters to the end. Pages that nobody wrote
        # to stay untouched: copying them would make them resident.
        pages = range(0, self.size, PAGE_BYTES)
        kept = {page: bytes(self.memory[page : page + PAGE_BYTES]) for page in pages}
        lib.forget_region(self.address, self.size)
        for page, content in kept.items():
            if content.count(0) != len(content):
                self.memory[page : page + len(content)] = content
        os.close(self._region_fd)

    def abandon(self) -> None:
        """In a forked child: drop the references; the region was replaced at the fork."""
        if not self._object.closed:
            self._object.abandon()
            os.close(self._region_fd)
