"""Probes on the way of packets: network interfaces and cgroups."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from kerneltrace_core.session.kernel_probes import LSM
from kerneltrace_core.session.probe import Probe

__all__ = ["Cgroup", "Tc", "Xdp"]

SCHED_CLS = 3
XDP = 6
CGROUP_SKB = 8
CGROUP_SOCK = 9
SOCK_OPS = 13
CGROUP_DEVICE = 15
CGROUP_SOCK_ADDR = 18
CGROUP_SYSCTL = 23
CGROUP_SOCKOPT = 25


@dataclass(frozen=True)
class Xdp(Probe):
    """Packets that an interface receives, before the kernel allocates anything for them; 5.9.

    ``interface`` is a name in the network namespace of the attaching thread. ``mode``: "native"
    is the driver's, "generic" every interface has. Needs CAP_NET_ADMIN and CAP_BPF.
    """

    interface: str
    mode: str = "auto"

    kind: ClassVar[str] = "XDP"
    sections: ClassVar[tuple[str, ...]] = ("xdp", "xdp.frags")
    program_types: ClassVar[frozenset[int]] = frozenset({XDP})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._text("interface")
        self._one_of("mode", ("auto", "native", "generic", "offload"))

    def target(self) -> str:
        """``eth0``, or ``eth0 (generic)``."""
        return self.interface + ("" if self.mode == "auto" else f" ({self.mode})")


@dataclass(frozen=True)
class Tc(Probe):
    """Packets that pass an interface, ``direction`` "ingress" or "egress"; needs CAP_NET_ADMIN.

    A tcx link from Linux 6.6 on. Before it a filter of the clsact qdisc, which is made if there
    is none and removed again if nothing else uses it by then.
    """

    interface: str
    direction: str = "ingress"

    kind: ClassVar[str] = "tc"
    sections: ClassVar[tuple[str, ...]] = ("tc", "tcx", "classifier")
    program_types: ClassVar[frozenset[int]] = frozenset({SCHED_CLS})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._text("interface")
        self._one_of("direction", ("ingress", "egress"))

    def target(self) -> str:
        """``eth0 ingress``."""
        return f"{self.interface} {self.direction}"

    def section_targets(self) -> tuple[str, ...]:
        """Return the direction."""
        return (self.direction,)


@dataclass(frozen=True)
class Cgroup(Probe):
    """What the processes of a cgroup (v2) do; the program's section says what; 5.7.

    ``path`` is a folder under the cgroup2 mount. Sections: cgroup_skb/ingress, cgroup/connect4,
    cgroup/sock_create, sockops, lsm_cgroup/...; needs CAP_NET_ADMIN and CAP_BPF.
    """

    path: str | os.PathLike[str]

    kind: ClassVar[str] = "cgroup"
    sections: ClassVar[tuple[str, ...]] = ("cgroup", "cgroup_skb", "sockops", "lsm_cgroup")
    program_types: ClassVar[frozenset[int]] = frozenset(
        {CGROUP_SKB, CGROUP_SOCK, SOCK_OPS, CGROUP_DEVICE, CGROUP_SOCK_ADDR, CGROUP_SYSCTL,
         CGROUP_SOCKOPT, LSM}
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.path, os.PathLike):
            object.__setattr__(self, "path", os.fspath(self.path))
        self._text("path")

    def target(self) -> str:
        """Return the path."""
        return os.fspath(self.path)
