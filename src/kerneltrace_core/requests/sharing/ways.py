"""Which way a process comes by the programs: from a socket, by fork, by pins, or its own copy."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from kerneltrace_core.errors import KernelTraceError, PrivilegeError
from kerneltrace_core.requests.kernel_side import KernelSide
from kerneltrace_core.requests.options import TracerOptions
from kerneltrace_core.requests.sharing.offer import VARIABLE

__all__ = ["is_one_of_several", "open_side"]

logger = logging.getLogger("kerneltrace")

Way = Callable[[], KernelSide]

# Measured by benchmarks/joined.py, for a thread that nobody traces as for one that is.
COST = "each further copy makes every system call on this machine about 0.1 us slower"
REMEDY = "share one: start the server by `kerneltrace run -- CMD`"


def open_side(options: TracerOptions) -> KernelSide:
    """Join what is there, in the order of what it costs, or load. Says once in the log which.

    Blocks for 1 to 90 ms; 3 seconds at most if another process hangs. Raises KernelTraceError,
    OSError when no way is left.
    """
    timed = options.syscalls == "time"
    refused: list[str] = []
    first: Exception | None = None
    if options.share != "own":
        for join in _ways(options, timed):
            try:
                side = join()
            except (KernelTraceError, OSError) as error:
                first = first or error
                refused.append(str(error).splitlines()[0])
            else:
                _tell_joined(side, options, refused)
                return side
    try:
        side = KernelSide.open(options.probes, timed=timed)
    except PrivilegeError as error:
        if first is None or isinstance(first, PrivilegeError):
            raise  # it is one cause for all
        # Whoever was to join has no privilege on purpose: that it lacks some is not the cause.
        raise KernelTraceError(
            f"{'; '.join(refused)}; and for a copy of its own: {error}"
        ) from first
    _tell_own(refused)
    return side


def _ways(options: TracerOptions, timed: bool) -> list[Way]:
    # Each is imported where it is used: a process alone pays for none.
    ways: list[Way] = []
    address = os.environ.get(VARIABLE, "")
    if address:
        from kerneltrace_core.requests.sharing.handed import join_handed

        ways.append(lambda: join_handed(address))
    inherited = sys.modules.get("kerneltrace_core.requests.sharing.inherited")
    inheritance = None if inherited is None else inherited.inheritance()
    if inheritance is not None:
        ways.append(inheritance.join)
    if options.share == "pins" or is_one_of_several():
        from kerneltrace_core.requests.sharing.folders import BPFFS
        from kerneltrace_core.requests.sharing.pins import join_pinned, usable

        if usable():
            ways.append(lambda: join_pinned(options.probes, timed=timed))
        elif options.share == "pins":
            ways.append(lambda: _refuse(f"pin programs: no bpffs to write to at {BPFFS}"))
    return ways


def _refuse(why: str) -> KernelSide:
    raise KernelTraceError(why)


def is_one_of_several() -> bool:
    """Tell whether this process is a worker of a server that starts several.

    By what started it: multiprocessing (uvicorn, hypercorn, granian), gunicorn, billiard (celery).
    """
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return True
    if "gunicorn.arbiter" in sys.modules:
        return True
    billiard = sys.modules.get("billiard.process")
    return billiard is not None and billiard.current_process().name != "MainProcess"


def _tell_joined(side: KernelSide, options: TracerOptions, refused: list[str]) -> None:
    logger.info("kernel tracing: joined shared programs by %s, index %d", side.how, side.process)
    for why in refused:
        logger.warning("kernel tracing: %s; joined by %s instead", why, side.how)
    lacking = [group for group in options.probes if group not in side.plan.groups]
    if lacking and not all(group in side.plan.missing for group in lacking):
        logger.warning(
            "kernel tracing: the shared programs are without %s: who loaded them had other options",
            ", ".join(lacking),
        )


def _tell_own(refused: list[str]) -> None:
    if refused:
        logger.warning(
            "kernel tracing: %s; this process runs its own copy of the programs, and %s",
            "; ".join(refused),
            COST,
        )
    elif is_one_of_several():
        logger.warning(
            "kernel tracing: this worker runs its own copy of the programs, and %s (%s)",
            COST,
            REMEDY,
        )
    else:
        logger.info("kernel tracing: this process runs its own copy of the programs; %s", COST)
