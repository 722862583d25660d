"""Device numbers, and the names of errors."""

from __future__ import annotations

import errno
from typing import NamedTuple

__all__ = ["Device", "error_name"]

# MINORBITS in include/linux/kdev_t.h; what stat() returns is arranged in another way.
MINOR_BITS = 20


class Device(NamedTuple):
    """A device as ``lsblk`` and ``/proc/diskstats`` name it: ``8:1``."""

    major: int
    minor: int

    @classmethod
    def from_kernel(cls, number: int) -> Device:
        """Return the device of a ``dev_t`` that a BPF program read in the kernel."""
        return cls(number >> MINOR_BITS, number & (1 << MINOR_BITS) - 1)

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


def error_name(result: int) -> str | None:
    """Return the name of the error in a kernel function's result: -2 is ``ENOENT``.

    None for what is no error: zero and more. A number without a name is itself.
    """
    if result >= 0:
        return None
    return errno.errorcode.get(-result, str(result))
