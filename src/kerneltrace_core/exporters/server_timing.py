"""The ``Server-Timing`` response header: what a browser's network panel shows of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kerneltrace_core.exporters.vocabulary import TOKENS

if TYPE_CHECKING:
    from kerneltrace_core.requests import KernelStats

__all__ = ["server_timing"]


def server_timing(stats: KernelStats) -> str | None:
    """Return the header's value for what ``stats`` knows now, or None if it knows nothing.

    Durations are milliseconds. The header leaves before the body, so it covers the time up to
    the start of the response and no streamed body. Whoever can read it learns how the server
    spends its time: ask for it only where that is meant.
    """
    metrics = []
    for field, token in TOKENS:
        value_ns = getattr(stats, field)
        if value_ns is None:
            continue
        cause = _largest_cause(stats) if field == "blocked_ns" else None
        description = f';desc="{cause}"' if cause else ""
        metrics.append(f"{token}{description};dur={value_ns / 1_000_000:.3f}")
    return ", ".join(metrics) or None


def _largest_cause(stats: KernelStats) -> str | None:
    causes = stats.blocked_by
    if not causes:
        return None
    cause = max(causes, key=causes.__getitem__)
    return cause if causes[cause] > 0 else None
