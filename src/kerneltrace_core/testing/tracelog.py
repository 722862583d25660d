"""FakeTraceLog: the trace log of a session without a kernel."""

from __future__ import annotations

from collections import deque

from kerneltrace_core.session.traceline import TraceLine
from kerneltrace_core.session.tracelog import TraceLog, check_timeout

__all__ = ["FakeTraceLog"]


class FakeTraceLog(TraceLog):
    """Give the lines that a test puts into a queue; as from the kernel's, each goes to one log.

    Any operating system.
    """

    def __init__(self, lines: deque[TraceLine], timeout: float | None) -> None:
        check_timeout(timeout)
        self._ended = False
        super().__init__(None, timeout)
        self._lines = lines

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._ended

    def close(self) -> None:
        """Wake the reader; may be repeated."""
        self._ended = True
        super().close()

    def abandon(self) -> None:
        """In a forked child: be closed there."""
        self._ended = True
        super().abandon()

    def _next(self) -> TraceLine | None:
        try:
            return self._lines.popleft()  # other logs of the session take from it, too
        except IndexError:
            return None
