"""Capabilities of this process, and the user namespace in which they count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "NEEDED",
    "CapabilitySets",
    "capability_names",
    "parse_capabilities",
    "parse_user_namespace",
    "read_capabilities",
    "read_user_namespace_is_initial",
]

# By bit number: include/uapi/linux/capability.h.
NAMES = (
    "cap_chown",
    "cap_dac_override",
    "cap_dac_read_search",
    "cap_fowner",
    "cap_fsetid",
    "cap_kill",
    "cap_setgid",
    "cap_setuid",
    "cap_setpcap",
    "cap_linux_immutable",
    "cap_net_bind_service",
    "cap_net_broadcast",
    "cap_net_admin",
    "cap_net_raw",
    "cap_ipc_lock",
    "cap_ipc_owner",
    "cap_sys_module",
    "cap_sys_rawio",
    "cap_sys_chroot",
    "cap_sys_ptrace",
    "cap_sys_pacct",
    "cap_sys_admin",
    "cap_sys_boot",
    "cap_sys_nice",
    "cap_sys_resource",
    "cap_sys_time",
    "cap_sys_tty_config",
    "cap_mknod",
    "cap_lease",
    "cap_audit_write",
    "cap_audit_control",
    "cap_setfcap",
    "cap_mac_override",
    "cap_mac_admin",
    "cap_syslog",
    "cap_wake_alarm",
    "cap_block_suspend",
    "cap_audit_read",
    "cap_perfmon",
    "cap_bpf",
    "cap_checkpoint_restore",
)

NEEDED = ("cap_bpf", "cap_perfmon")

# include/uapi/linux/nsfs.h USER_NS_INIT_INO: the first user namespace has this inode
# number on every kernel since 3.8.
INITIAL_USER_NAMESPACE = 0xEFFFFFFD

FIELDS = {
    "CapInh": "inheritable",
    "CapPrm": "permitted",
    "CapEff": "effective",
    "CapBnd": "bounding",
    "CapAmb": "ambient",
}


@dataclass(frozen=True)
class CapabilitySets:
    """The five sets of capabilities(7), each of lower-case names. Immutable."""

    inheritable: frozenset[str] = frozenset()
    permitted: frozenset[str] = frozenset()
    effective: frozenset[str] = frozenset()
    bounding: frozenset[str] = frozenset()
    ambient: frozenset[str] = frozenset()

    def missing(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return those of ``wanted`` that are not effective, in the order given.

        CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, as in the kernel's bpf_capable().
        """
        if "cap_sys_admin" in self.effective:
            wanted = [name for name in wanted if name not in NEEDED]
        return tuple(name for name in wanted if name not in self.effective)


def capability_names(mask: int) -> frozenset[str]:
    """Return the names of the bits in ``mask``; a bit newer than this module is ``cap_<bit>``."""
    return frozenset(
        NAMES[bit] if bit < len(NAMES) else f"cap_{bit}"
        for bit in range(mask.bit_length())
        if mask >> bit & 1
    )


def parse_capabilities(lines: Iterable[str]) -> CapabilitySets:
    """Parse the ``Cap...:`` lines of ``/proc/<pid>/status``.

    A set without a line is empty (CapAmb came with Linux 4.3). Raises ValueError when a
    mask is not hexadecimal, or when there is no CapEff line at all.
    """
    sets: dict[str, frozenset[str]] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon and key in FIELDS:
            sets[FIELDS[key]] = capability_names(int(value.strip(), 16))
    if "effective" not in sets:
        raise ValueError("parse capabilities: no CapEff line")
    return CapabilitySets(**sets)


def parse_user_namespace(link: str) -> int:
    """Parse the target of ``/proc/<pid>/ns/user``, ``user:[4026531837]``; raises ValueError."""
    if not (link.startswith("user:[") and link.endswith("]")):
        raise ValueError(f"parse user namespace {link!r}: not of the form user:[inode]")
    return int(link[len("user:[") : -1])


def read_capabilities(path: str = "/proc/thread-self/status") -> CapabilitySets:
    """Read the calling thread's capabilities; raises OSError or ValueError."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        return parse_capabilities(lines)


def read_user_namespace_is_initial(path: str = "/proc/self/ns/user") -> bool | None:
    """Tell whether this process is in the first user namespace; None is could not tell.

    bpf(2) counts only capabilities of the first one, so root in a rootless container has
    a full CapEff and is refused all the same.
    """
    try:
        return parse_user_namespace(str(Path(path).readlink())) == INITIAL_USER_NAMESPACE
    except (OSError, ValueError):
        return None
