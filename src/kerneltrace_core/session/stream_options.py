"""What streams are told, for type checkers: the keywords of Session.events, batches and raw."""

from __future__ import annotations

from typing import Any, TypedDict

__all__ = ["BatchOptions", "EventOptions", "StreamOptions"]


class StreamOptions(TypedDict, total=False):
    """Of every stream; see Session.events."""

    ring: str | None
    timeout: float | None
    overflow: str | None
    queue_size: int | None


class EventOptions(StreamOptions, total=False):
    """Of streams of one type."""

    where: Any


class BatchOptions(EventOptions, total=False):
    """Of streams of columns; ``size``: the most events of a batch."""

    size: int | None
