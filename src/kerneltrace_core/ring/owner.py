"""The process that a reader belongs to: a forked child has its object, but not its memory."""

from __future__ import annotations

import os

from kerneltrace_core.errors import ClosedError

__all__ = ["Owner"]


class Owner:
    """Remember which process opened something, by what name users know it."""

    __slots__ = ("closed", "pid", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.pid = os.getpid()
        self.closed = False

    @property
    def inherited(self) -> bool:
        """Whether this is a child that was forked after the opening."""
        return os.getpid() != self.pid

    def check(self, act: str) -> None:
        """Raise ClosedError after ``close``, and in a forked child."""
        if self.inherited:
            raise ClosedError(
                f"{act} {self.what}: it belongs to process {self.pid}, and this one was forked "
                f"from it (open a session in this process)"
            )
        if self.closed:
            raise ClosedError(f"{act} {self.what}: it is closed")
