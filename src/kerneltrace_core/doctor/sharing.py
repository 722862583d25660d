"""Facts about sharing: how a process that starts now would come by the programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from kerneltrace_core.kernel.support import Support

__all__ = ["joins_by_socket", "kernel_side_fact", "pins_fact"]

SECONDS = 1.0


def kernel_side_fact(environ: Mapping[str, str] = os.environ) -> Support:
    """Say which way a worker that starts in this environment would join."""
    try:
        from kerneltrace_core.requests.sharing.handed import status
        from kerneltrace_core.requests.sharing.pins import usable
    except ImportError as error:
        return Support.unknown(str(error))
    address = environ.get("KERNELTRACE_SOCKET", "")
    if not address:
        inherited = sys.modules.get("kerneltrace_core.requests.sharing.inherited")
        inheritance = None if inherited is None else inherited.inheritance()
        if inheritance is not None:
            return Support.yes(f"inherited, from a pool of {inheritance.regions} regions")
        if usable():
            return Support.yes("own copy; workers of one server share by pins in /sys/fs/bpf")
        return Support.yes("own copy in each process; kerneltrace run -- CMD shares one")
    try:
        answer = status(address, SECONDS)
    except (OSError, ValueError) as error:
        return Support.no(f"{address}: {error}", "restart what runs kerneltrace run")
    except Exception as error:  # noqa: BLE001 - whatever it answers, the doctor goes on
        return Support.no(str(error), "restart what runs kerneltrace run")
    if answer.get("ok") is not True:
        return Support.no(str(answer.get("error")), "restart what runs kerneltrace run")
    taken, regions = answer.get("members"), answer.get("regions")
    return Support.yes(f"by socket {address}: {taken} of {regions} regions taken")


def joins_by_socket(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a process that starts in this environment joins by a socket that answers."""
    return bool(environ.get("KERNELTRACE_SOCKET")) and kernel_side_fact(environ).works


def pins_fact() -> Support:
    """Say whose pins there are, and whether anybody lives in them."""
    try:
        from kerneltrace_core.requests.sharing.folders import find_folders
    except ImportError as error:
        return Support.unknown(str(error))
    folders = find_folders()
    stale = [str(folder.path) for folder in folders if folder.alive is False]
    if stale:
        return Support.no(
            f"nobody lives in {', '.join(stale)}: its programs slow every system call",
            f"rm -r {' '.join(stale)} (the next start of a worker does it too)",
        )
    if not folders:
        return Support.yes("none")
    return Support.yes(", ".join(f"{folder.path.name} of uid {folder.uid}" for folder in folders))
