"""Follower: a thread that reads a stream for the length of a block."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from kerneltrace_core.session.session import Session

__all__ = ["TICK_SECONDS", "Follower"]

# The streams that are followed have this for their timeout: how late the end may be noticed.
TICK_SECONDS = 0.02
# Of a session whose events never pause: how long after the end there is still something read.
LATEST_SECONDS = 10.0


class Follower(threading.Thread):
    """Hand what a stream has to ``take``, from now until ``finish``.

    So that neither ring nor queue overflows only because nobody reads. The stream's timeout is
    TICK_SECONDS; it is closed by whoever made it.
    """

    def __init__(
        self, session: Session, stream: Any, take: Callable[[Any], object], settle: float
    ) -> None:
        super().__init__(name=f"kerneltrace-{session.name}-follow", daemon=True)
        self._session = session
        self._stream = stream
        self._take = take
        self._settle = settle
        self._ended = threading.Event()
        self._end = 0.0
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Read to the end; what is raised is kept for ``finish``."""
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - raised by finish
            self._error = error

    def _follow(self) -> None:
        quiet_since = 0.0
        while True:
            # First: what was there at the end is read once more.
            ended = self._ended.is_set()
            over = self._session.closed or self._stream.closed
            for item in self._stream:
                self._take(item)
                quiet_since = time.monotonic()
                if self._ended.is_set() and quiet_since - self._end > LATEST_SECONDS:
                    return
            quiet = time.monotonic() - max(quiet_since, self._end)
            if over or (ended and quiet >= self._settle):
                return

    def finish(self) -> None:
        """Wait until nothing came for ``settle`` seconds, at most LATEST_SECONDS.

        Raises what reading or ``take`` raised.
        """
        self._end = time.monotonic()
        self._ended.set()
        self.join()
        if self._error is not None:
            raise self._error
