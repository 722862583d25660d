"""Attach to network interfaces and cgroups."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from kerneltrace_core._native import attach as native
from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.errors import AttachError, PrivilegeError, UnsupportedError
from kerneltrace_core.kernel.symbols import nearest
from kerneltrace_core.session.attached import Attached, Descriptors
from kerneltrace_core.session.filters_left import filters_left
from kerneltrace_core.session.network_probes import Cgroup, Tc, Xdp
from kerneltrace_core.session.refusals import (
    Cause,
    did_you_mean,
    explained,
    missing_option,
    plain_cause,
    privilege,
    refuse,
)

__all__ = ["attach_cgroup", "attach_tc", "attach_xdp"]

XDP_LINK = 37
TCX_INGRESS, TCX_EGRESS = 46, 47
XDP_MODES = {"auto": 0, "generic": 1 << 1, "native": 1 << 2, "offload": 1 << 3}
NETWORK = ("cap_net_admin", "cap_bpf")
CGROUP2_MOUNT = "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"


def _interface(program: ProgramFacts, spec: Xdp | Tc) -> int:
    try:
        return socket.if_nametoindex(spec.interface)
    except OSError as error:
        known = [name for _, name in socket.if_nameindex()]
        hint = did_you_mean(nearest(spec.interface, known)) or f"there are {', '.join(known)}"
        cause = Cause(f"this network namespace has no interface {spec.interface}", hint)
        raise refuse(spec, program, errno.ENODEV, cause) from error


def attach_xdp(program_fd: int, program: ProgramFacts, spec: Xdp) -> Attached:
    """Attach to an interface by a link."""
    index = _interface(program, spec)

    def explain(code: int) -> Cause:
        if code in (errno.EPERM, errno.EACCES):
            return privilege(code, NETWORK)
        if code in (errno.EBUSY, errno.EEXIST):
            return Cause("another XDP program is attached there", f"ip link show {spec.interface}")
        if code in (errno.EOPNOTSUPP, errno.EINVAL) and spec.mode in ("native", "offload"):
            return Cause(f"its driver has no {spec.mode} XDP", 'take mode="generic"')
        if code == errno.EINVAL:
            return Cause("this kernel has no XDP links", "Linux 5.9 or later", UnsupportedError)
        return plain_cause(code)

    with explained(spec, program, explain):
        flags = XDP_MODES[spec.mode]
        return Descriptors((native.create_link(program_fd, index, XDP_LINK, flags=flags),))


def attach_tc(program_fd: int, program: ProgramFacts, spec: Tc) -> Attached:
    """Attach to an interface by a tcx link, else by a filter of its clsact qdisc."""
    index = _interface(program, spec)
    egress = spec.direction == "egress"

    def explain(code: int) -> Cause:
        if code in (errno.EPERM, errno.EACCES):
            return privilege(code, NETWORK)
        if code in (errno.ENOENT, errno.EOPNOTSUPP):
            return missing_option("CONFIG_NET_SCH_INGRESS", "CONFIG_NET_CLS_BPF") or Cause(
                "this kernel has no clsact qdisc or BPF classifier",
                "modprobe sch_ingress cls_bpf",
                UnsupportedError,
            )
        return plain_cause(code)

    with explained(spec, program, explain):
        try:
            kind = TCX_EGRESS if egress else TCX_INGRESS
            return Descriptors((native.create_link(program_fd, index, kind),))
        except AttachError as error:
            if error.errno != errno.EINVAL:
                raise
        return TcFilter(index, spec, program, program_fd)


# Interfaces, by network namespace and index, whose clsact qdisc was made here.
OWN_HOOKS: set[tuple[int, int]] = set()
HOOKS_LOCK = threading.RLock()  # reentrant: a signal handler may close a session


class TcFilter:
    """A filter of the clsact qdisc, before there were tcx links."""

    def __init__(self, index: int, spec: Tc, program: ProgramFacts, program_fd: int) -> None:
        self._spec = spec
        self._program = program
        # "thread-self": a namespace is a thread's, and the interface's index is the namespace's.
        self._hook = (Path("/proc/thread-self/ns/net").stat().st_ino, index)
        self._egress = spec.direction == "egress"
        self._held = native.new_filter()
        try:
            with HOOKS_LOCK:
                native.tc_hook_create(index, self._held)
                native.tc_attach(index, self._held, egress=self._egress, program_fd=program_fd)
        except BaseException:  # also what a signal handler raises
            self.close()
            raise

    def close(self) -> None:
        """Remove the filter, and with the last one the qdisc if it was made here.

        Raises AttachError in another network namespace, and can be called again then.
        """
        index = self._hook[1]
        if Path("/proc/thread-self/ns/net").stat().st_ino != self._hook[0]:
            raise AttachError(
                f"detach {self._spec} from program {self._program}: ENODEV: this thread is in "
                "another network namespace than the interface, and the filter stays (detach "
                "again, or close the session again, on a thread of that namespace: setns(2))",
                errno=errno.ENODEV,
            )
        # The interface may be gone, and its filters with it.
        with HOOKS_LOCK, suppress(AttachError, PrivilegeError):
            if self._held.made_hook:
                OWN_HOOKS.add(self._hook)
                self._held.made_hook = False
            if self._held.handle:
                native.tc_detach(index, self._held, egress=self._egress)
            if self._hook in OWN_HOOKS and not filters_left(index):
                OWN_HOOKS.discard(self._hook)
                native.tc_hook_destroy(index)

    def abandon(self) -> None:
        """Do nothing: the filter is the parent's, and no descriptor holds it."""


def attach_cgroup(program_fd: int, program: ProgramFacts, spec: Cgroup) -> Attached:
    """Attach to a cgroup by a link, for what the program's section says."""
    path = Path(spec.target())
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        cause = Cause(f"open the cgroup: {error.strerror}")
        raise refuse(spec, program, error.errno, cause) from error

    def explain(code: int) -> Cause:
        if code in (errno.EPERM, errno.EACCES):
            if "cap_net_admin" in privilege(code, NETWORK).text.lower():
                return privilege(code, NETWORK)
            return Cause(
                "a program above or in this cgroup allows no other, "
                "or the kernel refuses this process",
                kind=PrivilegeError,
            )
        if code in (errno.EBADF, errno.EINVAL):
            if not (path / "cgroup.procs").exists() or not (path / "cgroup.controllers").exists():
                return Cause(f"{path} is not a cgroup of version 2", CGROUP2_MOUNT)
            return missing_option("CONFIG_CGROUP_BPF") or Cause(
                "this kernel has no cgroup links", "Linux 5.7 or later", UnsupportedError
            )
        return plain_cause(code)

    try:
        with explained(spec, program, explain):
            return Descriptors((native.create_link(program_fd, folder, program.attach_type),))
    finally:
        os.close(folder)
