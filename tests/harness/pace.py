"""How fast this machine is: an emulated guest takes fifteen times as long for everything."""

from __future__ import annotations

import os

GUEST_FACTOR = 15.0


def in_guest() -> bool:
    """Tell whether this is a guest of tests/kernels/run_in_kernel.py."""
    return bool(os.environ.get("RUN_IN_KERNEL"))


def time_factor() -> float:
    """Return by how much everything takes longer here than on a real machine."""
    return GUEST_FACTOR if in_guest() else 1.0


def stretched(seconds: float) -> float:
    """Return a pause that is as long on this machine as so many seconds on a real one.

    A sleep begins when its timer is set, and the thread is off its CPU only later.
    """
    return seconds * time_factor()


def rounds(times: int, *, in_guest: int) -> int:
    """Return how often to repeat what a few rounds show as well: fewer in a guest."""
    return in_guest if time_factor() > 1 else times
