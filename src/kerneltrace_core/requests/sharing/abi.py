"""The name of what has to be the same in processes that share programs."""

from __future__ import annotations

from binascii import crc32

from kerneltrace_core.bpf.object import builtin_digest
from kerneltrace_core.requests import layout

__all__ = ["abi_hash"]

DIGITS = 16


def abi_hash(*more: object) -> str:
    """Return a hash of the compiled programs, of Python's idea of the region, and of ``more``.

    A CRC for the rest: OpenSSL's first call in a forked child is a noticeable part of a join.
    """
    programs = builtin_digest("requests")[:DIGITS].decode()
    shape = (layout.ABI, layout.THREADS, layout.SLOTS, layout.SLOT_BYTES, *more)
    return f"{programs}{crc32(repr(shape).encode()):08x}"
