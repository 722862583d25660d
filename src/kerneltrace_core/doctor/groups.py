"""The probe groups, and the tracepoints that each needs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ProbeGroup", "probe_groups", "remedy_for"]


@dataclass(frozen=True)
class ProbeGroup:
    """One group of probes: it works when every ``required`` tracepoint can be used.

    Without an ``optional`` one the group works with less; ``without`` says what is lost.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    without: str = ""


SOCKETS = ("sock_send_length", "sock_recv_length")

GROUPS = (
    ProbeGroup(
        "sched",
        (
            "sched_switch",
            "sched_waking",
            "sched_process_exec",
            "sched_process_exit",
            "sched_process_fork",
        ),
    ),
    ProbeGroup(
        "syscalls",
        ("sys_enter", "sys_exit"),
        SOCKETS,
        "each call's descriptor is looked at instead, which costs more",
    ),
    ProbeGroup(
        "block",
        ("block_bio_queue", "block_rq_complete"),
        ("block_bio_complete",),
        "no disk_ns on stacked devices",
    ),
    ProbeGroup(
        "net",
        ("inet_sock_set_state", "tcp_retransmit_skb"),
        SOCKETS,
        "bytes on sockets need the group syscalls too",
    ),
    ProbeGroup("faults", ("page_fault_user", "page_fault_kernel")),
)

REMEDIES = {
    "sock_send_length": "Linux 6.3 or later",
    "sock_recv_length": "Linux 6.3 or later",
    "sys_enter": "kernel option CONFIG_FTRACE_SYSCALLS",
    "sys_exit": "kernel option CONFIG_FTRACE_SYSCALLS",
    "block_bio_queue": "kernel option CONFIG_BLOCK",
    "block_rq_complete": "kernel option CONFIG_BLOCK",
    "block_bio_complete": "kernel option CONFIG_BLOCK",
    "inet_sock_set_state": "kernel option CONFIG_INET",
    "tcp_retransmit_skb": "kernel option CONFIG_INET",
    "page_fault_user": "leave the group off (major faults are counted by sched)",
    "page_fault_kernel": "leave the group off (major faults are counted by sched)",
}


def probe_groups() -> tuple[ProbeGroup, ...]:
    """Return the groups in the order in which they are shown."""
    return GROUPS


def remedy_for(tracepoint: str) -> str:
    """Return what brings a tracepoint that this kernel does not have; may be empty."""
    return REMEDIES.get(tracepoint, "")
