"""Which request programs to load for the groups that are wanted, on the kernel that there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kerneltrace_core._native import lib
from kerneltrace_core.errors import FormatError, UnsupportedError
from kerneltrace_core.requests.measures import Measures

__all__ = ["Plan", "plan_programs", "tracepoint_arguments"]

GROUPS = ("sched", "syscalls", "block", "net", "faults")

# Attached in this order, detached in reverse: the register must be kept (sched) before anything
# reads it. program -> tracepoint.
SCHED = {
    "kt_sched_switch": "sched_switch",
    "kt_sched_waking": "sched_waking",
    "kt_sched_process_fork": "sched_process_fork",
    "kt_sched_process_exec": "sched_process_exec",
    "kt_sched_process_exit": "sched_process_exit",
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
# Those that threads run with preemption enabled: where a program can lose its CPU in its middle,
# each has a second copy behind it, which stands in for it (kt_left_out in state.bpf.h). All but
# kt_sys_enter, for which every process would pay, and without which a call lacks its time alone.
PREEMPTED = (
    "kt_sched_process_fork",
    "kt_sched_process_exec",
    "kt_sched_process_exit",
    "kt_sys_exit",
    *SOCKETS,
    "kt_block_bio_queue",
    "kt_inet_sock_set_state",
)
SECOND = "_second"
PREV_STATE_ARGUMENTS = 4
OLD_SWITCH = "kt_sched_switch_5_17"
EVERY_TRACEPOINT: dict[str, int | None] = {
    point: PREV_STATE_ARGUMENTS for points in PROGRAMS.values() for point in points.values()
}
TIMED = "timed"


def _every_program() -> Iterator[str]:
    yield OLD_SWITCH
    for name in dict.fromkeys(name for points in PROGRAMS.values() for name in points):
        yield name
        if name in PREEMPTED:
            yield name + SECOND


# In the order in which they are attached, which is that of the links' descriptors too.
EVERY_PROGRAM = tuple(_every_program())
# What the bits of a plan mean, from the lowest on.
NAMED = (*EVERY_PROGRAM, *GROUPS, TIMED)


def _bits(*names: str) -> int:
    return sum(1 << NAMED.index(name) for name in names)


TIMED_BITS = _bits(TIMED)
SOCKETS_BITS = _bits(*SOCKETS)
SECOND_BITS = _bits(*(name for name in EVERY_PROGRAM if name.endswith(SECOND)))


@dataclass(frozen=True)
class Plan:
    """Which programs to load on this kernel, and why others are left out."""

    programs: tuple[str, ...]
    groups: tuple[str, ...]
    missing: dict[str, str]
    sockets: bool
    timed: bool
    second_copies: bool

    def bits(self) -> int:
        """Return the plan, but for ``missing``, as a number; see ``of_bits``."""
        return _bits(*self.programs, *self.groups, *((TIMED,) if self.timed else ()))

    @classmethod
    def of_bits(cls, bits: int, missing: dict[str, str]) -> Plan:
        """Rebuild another process's plan. Raises FormatError if the bits are of no plan."""
        if not 0 <= bits < 1 << len(NAMED):
            raise FormatError("read plan of shared programs: unknown programs or groups")
        groups = bits >> len(EVERY_PROGRAM)
        return cls(
            programs=tuple(name for bit, name in enumerate(EVERY_PROGRAM) if bits >> bit & 1),
            groups=tuple(name for bit, name in enumerate(GROUPS) if groups >> bit & 1),
            missing=missing,
            sockets=bits & SOCKETS_BITS == SOCKETS_BITS,
            timed=bits & TIMED_BITS != 0,
            second_copies=bits & SECOND_BITS != 0,
        )

    @classmethod
    def of_programs(cls, programs: set[str], wanted: tuple[str, ...], timed: bool) -> Plan:
        """Rebuild the plan that others loaded for the same groups, from its programs' names."""
        modern = {"kt_sched_switch" if n == OLD_SWITCH else n for n in programs}
        arguments: dict[str, int | None] = {
            point: PREV_STATE_ARGUMENTS
            for points in PROGRAMS.values()
            for name, point in points.items()
            if name in modern or (name == "kt_sys_enter" and not timed and "kt_sys_exit" in modern)
        }
        if "kt_sched_switch" not in programs and "sched_switch" in arguments:
            arguments["sched_switch"] = PREV_STATE_ARGUMENTS - 1
        return plan_programs(
            wanted,
            timed,
            {**dict.fromkeys(EVERY_TRACEPOINT), **arguments},
            second_copies=any(name.endswith(SECOND) for name in programs),
        )

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


def plan_programs(
    wanted: tuple[str, ...],
    timed: bool,
    arguments: dict[str, int | None],
    second_copies: bool = False,
) -> Plan:
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
                if second_copies and program in PREEMPTED:
                    programs[program + SECOND] = None
    if "sched" in missing:
        raise UnsupportedError(f"load request probes: {missing['sched']}")
    if (arguments["sched_switch"] or 0) < PREV_STATE_ARGUMENTS:
        programs = {OLD_SWITCH if name == "kt_sched_switch" else name: None for name in programs}
    ordered = tuple(name for name in EVERY_PROGRAM if name in programs)
    sockets = all(name in programs for name in SOCKETS)
    return Plan(ordered, tuple(groups), missing, sockets, timed, second_copies)


def tracepoint_arguments(btf_path: str | None) -> dict[str, int | None]:
    """Ask the kernel's BTF for every tracepoint that the groups use."""
    btf = lib.load_btf(btf_path)
    try:
        return {point: lib.tracepoint_arguments(btf, point) for point in EVERY_TRACEPOINT}
    finally:
        lib.free_btf(btf)
