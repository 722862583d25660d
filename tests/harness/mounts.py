"""tracefs and bpffs for this session alone, where the machine has not mounted them.

What is not mounted is not this suite's to mount for the machine: a process that may do it does it
in a mount namespace of its own, which its children share and which ends with them. Where it may
not, or the kernel has no such file system, the tests' probes "tracefs" and "bpffs" say no.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from kerneltrace_core.kernel.support import Support

CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000


class Mount(NamedTuple):
    """A file system and where it belongs."""

    kind: str
    place: str


TRACEFS = Mount("tracefs", "/sys/kernel/tracing")
BPFFS = Mount("bpf", "/sys/fs/bpf")
FOLDERS = ("tests/kernel", "tests/integration")

TOLD = pytest.StashKey[list[str]]()


def may_run(arguments: Iterable[str], invoked_in: Path, root: Path) -> bool:
    """Tell whether pytest's arguments lead to tests of a tier that meets the kernel."""
    for argument in arguments:
        named = (invoked_in / argument.partition("::")[0]).resolve()
        for folder in (root / name for name in FOLDERS):
            if named == folder or named in folder.parents or folder in named.parents:
                return True
    return False


def missing(mounts: Iterable[Mount]) -> list[Mount]:
    """Return those at whose place nothing is mounted."""
    return [mount for mount in mounts if not os.path.ismount(mount.place)]


def mount_here_alone(mounts: Sequence[Mount]) -> list[str]:
    """Mount file systems in a mount namespace of this process's own; return what became of it.

    Only the calling thread moves there, and what it starts later: to be called before all others.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def refused(act: str) -> str:
        return f"{act}: {os.strerror(ctypes.get_errno())}"

    if libc.unshare(CLONE_NEWNS) != 0:
        return [refused("not mounted: unshare the mount namespace")]
    # Else they would be seen wherever the machine's mounts go.
    if libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None) != 0:
        return [refused("not mounted: make the mount namespace private")]
    told = []
    for kind, place in mounts:
        failed = libc.mount(kind.encode(), place.encode(), kind.encode(), ctypes.c_ulong(0), None)
        told.append(
            refused(f"not mounted: {kind} at {place}")
            if failed
            else f"mounted for this session alone: {kind} at {place}"
        )
    return told


def tracefs_to_read(places: tuple[str, ...] | None = None) -> Support:
    """Tell whether tracefs is mounted and this process may read it: the probe "tracefs"."""
    from kerneltrace_core.kernel.support import Support
    from kerneltrace_core.kernel.tracefs import PLACES, find_tracefs

    try:
        mounted = find_tracefs(places or PLACES)
    except OSError as error:
        return Support.no(f"tracefs cannot be read: {error}")
    if mounted is None:
        return Support.no("tracefs is not mounted")
    if not os.access(mounted / "trace_pipe", os.R_OK):
        return Support.no(f"{mounted}/trace_pipe cannot be read")
    return Support.yes()


def bpffs_to_write(place: str = BPFFS.place) -> Support:
    """Tell whether a BPF file system is mounted that takes pins: the probe "bpffs"."""
    from kerneltrace_core.kernel.support import Support

    usable = os.path.ismount(place) and os.access(place, os.W_OK)
    return Support.yes() if usable else Support.no("no bpffs to write to")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Mount what is missing, before the first test and the first thread."""
    config.stash[TOLD] = []
    if platform.system() != "Linux" or os.geteuid() != 0:
        return
    absent = missing((TRACEFS, BPFFS))
    if absent and may_run(config.args, config.invocation_params.dir, config.rootpath):
        config.stash[TOLD] = mount_here_alone(absent)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was mounted and what could not be."""
    for line in config.stash[TOLD]:
        terminalreporter.line(line)
