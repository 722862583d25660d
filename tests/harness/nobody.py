"""Do a part of a test as uid 65534 with CAP_BPF and CAP_PERFMON alone, in a forked child."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

from harness.forked import in_child

T = TypeVar("T")

NOBODY = 65534
CAP_PERFMON, CAP_BPF = 38, 39
PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 4, 8
CAPABILITY_VERSION = 0x20080522


def _become_nobody(capabilities: Iterable[int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    mask = sum(1 << bit for bit in capabilities)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    if os.geteuid() != NOBODY:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    sets = struct.pack("=6I", low, low, 0, high, high, 0)
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def as_nobody(act: Callable[[], T], capabilities: Iterable[int] = (CAP_BPF, CAP_PERFMON)) -> T:
    """Return what ``act`` returns as uid 65534; fails with the child's traceback if it raises.

    Modules that it needs must be imported before: nobody may not read everything.
    """

    def inside() -> T:
        _become_nobody(capabilities)
        return act()

    return in_child(inside)
