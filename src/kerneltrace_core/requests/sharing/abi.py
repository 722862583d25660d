"""The name of what has to be the same in processes that share programs."""

from __future__ import annotations

from binascii import crc32

from kerneltrace_core._native import sharing
from kerneltrace_core.requests import layout

__all__ = ["abi_hash"]

DIGITS = 16


def _hash(*more: object) -> str:
    shape = (layout.ABI, layout.THREADS, layout.SLOTS, layout.SLOT_BYTES, *more)
    return f"{sharing.REQUESTS_SHA256[:DIGITS]}{crc32(repr(shape).encode()):08x}"


PLAIN = _hash()


def abi_hash(*more: object) -> str:
    """Return a hash of the compiled programs, of Python's idea of the region, and of ``more``."""
    return _hash(*more) if more else PLAIN
