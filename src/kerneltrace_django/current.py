"""The stats of the request at work: what ``request.kerneltrace`` is, and where to find it."""

from __future__ import annotations

from typing import Any

from kerneltrace_core.requests import KernelStats, request_here

__all__ = ["RequestStats", "current_stats"]


class RequestStats(KernelStats):
    """KernelStats of one Django request; see there.

    ``db`` is free for the accounting of database work; None: there was none, or nobody counts.
    """

    # Not set before it is used: an __init__ of its own would be called for each request.
    __slots__ = ("_db",)

    @property
    def db(self) -> Any:
        """The database work, by alias."""
        return getattr(self, "_db", None)

    @db.setter
    def db(self, work: Any) -> None:
        self._db = work


def current_stats() -> KernelStats | None:
    """Return the live stats of the request that the caller works for; None outside of one.

    Right in views, in what they await, and in the threads that work for them.
    """
    record = request_here()
    stats = record.info if record is not None else None
    return stats if isinstance(stats, KernelStats) else None
