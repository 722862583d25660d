"""The name of what has to be the same in processes that share programs."""

from __future__ import annotations

import hashlib

from kerneltrace_core.bpf.object import builtin_object
from kerneltrace_core.requests import layout

__all__ = ["abi_hash"]

DIGITS = 16


def abi_hash(*more: object) -> str:
    """Return a hash of the compiled programs, of Python's idea of the region, and of ``more``."""
    digest = hashlib.sha256(builtin_object("requests"))
    shape = (layout.ABI, layout.THREADS, layout.SLOTS, layout.SLOT_BYTES, *more)
    digest.update(repr(shape).encode())
    return digest.hexdigest()[:DIGITS]
