"""HeldLinks: descriptors that keep shared programs attached as long as this process lives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

__all__ = ["HeldLinks"]


class HeldLinks:
    """Descriptors of links that another process has made.

    A descriptor of such a link can keep it, and cannot detach it for others: the kernel detaches
    when the last one of all processes is closed. ``more`` are descriptors to close as well, after
    ``at_close``, which only who holds them calls, not what it has forked.
    """

    def __init__(
        self,
        how: str,
        links: Iterable[int],
        more: Iterable[int] = (),
        at_close: Callable[[], object] | None = None,
    ) -> None:
        self.how = how
        self._fds = [*links, *more]
        self._at_close = at_close

    def close(self) -> None:
        """Give them up; may be repeated."""
        at_close, self._at_close = self._at_close, None
        try:
            if at_close is not None:
                at_close()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """In a forked child: close what was inherited; may be repeated."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)
