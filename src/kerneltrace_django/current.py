"""The stats of the request at work: what ``request.kerneltrace`` is, and where to find it."""

from __future__ import annotations

from typing import Any

from kerneltrace_core.requests import KernelStats, request_here
from kerneltrace_core.requests.measures import OFF, Measures

__all__ = ["RequestStats", "current_stats"]


class RequestStats(KernelStats):
    """KernelStats of one Django request; see there.

    ``db`` is free for the accounting of database work; None: there was none, or nobody counts.
    """

    __slots__ = ("db",)

    def __init__(self, record: Any, measures: Measures = OFF) -> None:
        super().__init__(record, measures)
        self.db: Any = None


def current_stats() -> KernelStats | None:
    """Return the live stats of the request that the caller works for; None outside of one.

    Right in views, in what they await, and in the threads that work for them.
    """
    record = request_here()
    stats = record.info if record is not None else None
    return stats if isinstance(stats, KernelStats) else None
