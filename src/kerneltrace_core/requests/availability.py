"""Whether BPF can be expected to work here, from what can be read without loading anything."""

from __future__ import annotations

import errno
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from kerneltrace_core.kernel.btf import VMLINUX
from kerneltrace_core.kernel.capabilities import NEEDED
from kerneltrace_core.kernel.privileges import Privileges, explain_refusal, read_privileges
from kerneltrace_core.kernel.support import Support, Verdict

__all__ = ["BpfAvailability", "bpf_availability"]

OBJECT = Path(__file__).parents[1] / "_objects" / "requests.bpf.o"
EXTENSION = "kerneltrace_core._native._libbpf"
REINSTALL = "pip install --force-reinstall --no-cache-dir kerneltrace; it says what it lacks"


class BpfAvailability(NamedTuple):
    """``expected`` is False only where BPF cannot work, and then ``reason`` says why.

    ``remedy`` is empty where none is certain; ``missing`` are the capabilities that the calling
    thread lacks, such as ``CAP_BPF``.
    """

    expected: bool
    reason: str = ""
    remedy: str = ""
    missing: tuple[str, ...] = ()


def bpf_availability() -> BpfAvailability:
    """Say whether this process may expect to trace by BPF, and why not; never raises.

    Reads files of /proc and /sys; makes no bpf(2) call and imports no extension, so it can be
    asked anywhere. What only the attempt can tell (seccomp, security modules) counts as expected.
    """
    if sys.platform != "linux":
        return BpfAvailability(False, f"{sys.platform} has no BPF", "run it on Linux")
    privileges = read_privileges()
    answers = (_extension(), _object(), _kernel_types(), _permission(privileges))
    refusal = next((each for each in answers if each.verdict is Verdict.NO), Support.yes())
    held = privileges.capabilities
    missing = held.missing(NEEDED) if held is not None else ()
    names = tuple(name.upper() for name in missing)
    return BpfAvailability(refusal.works, refusal.reason, refusal.remedy, names)


def _extension() -> Support:
    try:
        found = find_spec(EXTENSION) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        return Support.no("its compiled part was not built for this Python", REINSTALL)
    return Support.yes()


def _object() -> Support:
    if not OBJECT.is_file():
        return Support.no("its compiled probes are not installed", REINSTALL)
    return Support.yes()


def _kernel_types() -> Support:
    if not Path(VMLINUX).exists():
        return Support.no(
            f"the kernel has no type information, {VMLINUX} is missing",
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y, as distributions have",
        )
    return Support.yes()


def _permission(privileges: Privileges) -> Support:
    lacking = privileges.capabilities is not None and privileges.capabilities.missing(NEEDED)
    confined = privileges.initial_user_namespace is False
    locked = privileges.lockdown.mode == "confidentiality"
    if not (lacking or confined or locked):
        return Support.yes()
    return explain_refusal(errno.EPERM, privileges, NEEDED, reads_kernel=True)
