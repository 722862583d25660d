"""capture_events: the events of a block of a test, as a list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kerneltrace_core.session.session import Session

__all__ = ["capture_events"]


@contextmanager
def capture_events(
    session: Session, kind: Any, *, settle: float = 0.2, **how: Any
) -> Iterator[list[Any]]:
    """Yield a list that has, once the block is left, every event that came in it.

    Reading begins before the block and ends when nothing came for ``settle`` seconds. ``how`` as
    for ``Session.events``. The block's exception passes; the list is filled then too.
    """
    captured: list[Any] = []
    with session.events(kind, timeout=settle, **how) as events:
        try:
            yield captured
        finally:
            captured.extend(events)
