"""Ask the kernel by doing, and read its answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kerneltrace_core.errors import UnsupportedError
from kerneltrace_core.kernel.bpfcall import BpfCall
from kerneltrace_core.kernel.privileges import Privileges, explain_refusal
from kerneltrace_core.kernel.support import Support

__all__ = ["Asking", "close", "closing", "code_name"]


class Asking:
    """What every probe needs: this thread's privileges, and ``bpf``, a seam for tests."""

    def __init__(self, privileges: Privileges, bpf: BpfCall | None = None) -> None:
        self.privileges = privileges
        self.bpf = bpf if bpf is not None else BpfCall()

    def _ask(
        self,
        act: Callable[[], None],
        wanted: tuple[str, ...],
        feature: str | None,
        since: str,
    ) -> Support:
        """Do ``act``; ``feature`` is what EINVAL says is lacking (None: EINVAL is odd)."""
        try:
            act()
        except UnsupportedError as error:
            return Support.unknown(str(error))
        except OSError as error:
            number = error.errno or 0
            if number in (errno.EPERM, errno.EACCES):
                return explain_refusal(number, self.privileges, wanted)
            if number == errno.ENOSYS:
                return Support.no("ENOSYS: no such system call", errno=number)
            if number in (errno.EINVAL, errno.EOPNOTSUPP) and feature is not None:
                return Support.no(
                    f"{code_name(error)}: this kernel has no {feature}",
                    f"Linux {since} or later",
                    number,
                )
            if number in (errno.EMFILE, errno.ENFILE):
                return Support.unknown(
                    f"{code_name(error)}: no descriptor left",
                    "raise LimitNOFILE / ulimit -n",
                    number,
                )
            return Support.unknown(f"{code_name(error)}: {error.strerror}", errno=number)
        return Support.yes()


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield descriptor
    finally:
        close(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor that was made to see that it can be."""
    os.close(descriptor)


def code_name(error: OSError) -> str:
    """Return ENOENT, or the number if it has no name."""
    return errno.errorcode.get(error.errno or 0, f"errno {error.errno}")
