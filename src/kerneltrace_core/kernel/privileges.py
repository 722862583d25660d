"""What this process may do, read once, and why the kernel would refuse it something."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field

from kerneltrace_core.kernel.capabilities import (
    CapabilitySets,
    read_capabilities,
    read_user_namespace_is_initial,
)
from kerneltrace_core.kernel.config import read_config
from kerneltrace_core.kernel.lockdown import Lockdown, read_lockdown
from kerneltrace_core.kernel.seccomp import Seccomp, read_seccomp
from kerneltrace_core.kernel.support import Support

__all__ = ["Privileges", "explain_refusal", "read_privileges"]


@dataclass(frozen=True)
class Privileges:
    """What decides over bpf(2) in this process; None everywhere means could not tell.

    Immutable; describes the thread that read it at the moment it was read.
    """

    capabilities: CapabilitySets | None = None
    initial_user_namespace: bool | None = None
    lockdown: Lockdown = field(default_factory=lambda: Lockdown(None))
    seccomp: Seccomp = field(default_factory=Seccomp)


def read_privileges() -> Privileges:
    """Read the calling thread's privileges; never raises."""
    try:
        capabilities: CapabilitySets | None = read_capabilities()
    except (OSError, ValueError):
        capabilities = None
    return Privileges(
        capabilities=capabilities,
        initial_user_namespace=read_user_namespace_is_initial(),
        lockdown=read_lockdown(read_config()),
        seccomp=read_seccomp(),
    )


def _name(capabilities: Iterable[str]) -> str:
    return ", ".join(name.upper() for name in capabilities)


def explain_refusal(
    error: int, privileges: Privileges, wanted: Iterable[str], *, reads_kernel: bool = False
) -> Support:
    """Say why the kernel answered EPERM or EACCES, in the order of certainty.

    ``wanted``: capabilities that the act needs. ``reads_kernel``: lockdown in mode
    confidentiality forbids it. What nothing here explains is unknown, not no.
    """
    named = errno.errorcode.get(error, str(error))
    held = privileges.capabilities
    missing = held.missing(wanted) if held is not None else ()
    if held is not None and missing:
        if all(name in held.permitted for name in missing):
            return Support.no(
                f"{_name(missing)} permitted, but not effective",
                "set the file capability's effective bit: setcap ...=ep, not =p",
                error,
            )
        return Support.no(f"{_name(missing)} missing", f"give it {_name(missing)}", error)
    if privileges.initial_user_namespace is False:
        return Support.no(
            f"{named}: the capabilities are of a user namespace and do not count for bpf()",
            "run outside of it: a rootful container, no userns-remap, no hostUsers: false",
            error,
        )
    mode = privileges.lockdown.mode
    if reads_kernel and mode == "confidentiality":
        return Support.no(
            f"{named}: kernel lockdown, mode confidentiality",
            "boot with lockdown=integrity or lockdown=none",
            error,
        )
    suspects = []
    if held is None:
        suspects.append("capabilities could not be read")
    if privileges.seccomp.mode == "filter":
        suspects.append("a seccomp filter is on")
    if mode in ("integrity", "confidentiality"):
        suspects.append(f"kernel lockdown is {mode}")
    because = f"; {', '.join(suspects)}" if suspects else "; a security module may forbid it"
    return Support.unknown(f"{named} with the capabilities that it needs{because}", errno=error)
