"""The process that a reader belongs to: a forked child has its object, but not its memory."""

from __future__ import annotations

import os

from kerneltrace_core.errors import ClosedError

__all__ = ["Owner"]


class Owner:
    """Remember which process opened something, by what name users know it.

    Asked at every drain, so it does not ask the kernel: Python's own hook tells of a fork.
    """

    __slots__ = ("_generation", "closed", "pid", "what")

    def __init__(self, what: str) -> None:
        _watch_forks()
        self.what = what
        self.pid = os.getpid()
        self.closed = False
        self._generation = _Forks.generation

    @property
    def inherited(self) -> bool:
        """Whether this is a child that was forked after the opening."""
        return self._generation != _Forks.generation

    def check(self, act: str) -> None:
        """Raise ClosedError after ``close``, and in a forked child."""
        if self._generation != _Forks.generation:
            raise ClosedError(
                f"{act} {self.what}: it belongs to process {self.pid}, and this one was forked "
                f"from it (open a session in this process)"
            )
        if self.closed:
            raise ClosedError(f"{act} {self.what}: it is closed")


class _Forks:
    """How many forks lie between the process that first asked and this one."""

    generation = 0
    watched = False


def _watch_forks() -> None:
    if not _Forks.watched:
        _Forks.watched = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    _Forks.generation += 1
