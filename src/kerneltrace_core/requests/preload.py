"""Load once, in a process that will fork its workers, so that each joins in a millisecond."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.requests.options import TracerOptions, resolve

__all__ = ["forget", "preload", "reserve"]

logger = logging.getLogger("kerneltrace")


def preload(children: int, **options: Any) -> bool:
    """Load the request programs for ``children`` processes that this one will fork.

    The children need no capability. ``options`` are the tracer's, and count for all of them;
    without any, the environment's. Blocks for 60 ms, and 2.8 MB of kernel memory per child. A
    second call changes nothing. Where a socket of ``kerneltrace run`` is named, nothing is done:
    the children join there. Starts no thread. This process is not traced by it.

    Returns whether there is something to join. If not, one WARNING says why, and the children try
    each by itself; with ``required`` raises KernelTraceError instead.
    """
    chosen = resolve(TracerOptions, options, forgiving=True)
    if not chosen.enabled or chosen.backend not in ("auto", "bpf") or chosen.share == "own":
        return False
    if os.environ.get("KERNELTRACE_SOCKET"):
        return True
    try:
        # Not at the top: it loads libbpf.
        from kerneltrace_core.requests.sharing.inherited import prepare

        prepare(chosen.probes, timed=chosen.syscalls == "time", regions=max(1, children))
    except (KernelTraceError, OSError) as error:
        from kerneltrace_core.requests.backends import describe

        if chosen.required:
            raise
        logger.warning("kernel tracing: nothing loaded for the workers: %s", describe(error))
        return False
    return True


def reserve(spare: int) -> None:
    """In the process that preloaded: have room for so many more children; never raises.

    The kernel has marked what dead children had, and that is used first. Blocks for 20 ms if
    regions have to be made, which needs CAP_BPF.
    """
    if not _loaded():
        return
    from kerneltrace_core.requests.sharing.inherited import inheritance

    inherited = inheritance()
    if inherited is None or not inherited.mine:
        return
    try:
        inherited.reserve(spare)
    except (KernelTraceError, OSError) as error:
        logger.debug("kernel tracing: no room for %d more workers: %s", spare, error)


def forget() -> None:
    """In a child that will not be traced: give up what was preloaded for it."""
    if _loaded():
        from kerneltrace_core.requests.sharing.inherited import release

        release()


def _loaded() -> bool:
    return "kerneltrace_core.requests.sharing.inherited" in sys.modules
