"""capture_events: the events of a block of a test, as a list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kerneltrace_core.errors import ClosedError, RingError
from kerneltrace_core.session.session import Session
from kerneltrace_core.testing.following import TICK_SECONDS, Follower

__all__ = ["capture_events"]


@contextmanager
def capture_events(
    session: Session, kind: Any, *, settle: float = 0.2, **how: Any
) -> Iterator[list[Any]]:
    """Yield a list that has, once the block is left, every event that came in it.

    A thread reads from before the block until nothing came for ``settle`` seconds after it, for
    ten at most. ``how`` as for ``Session.events``. The block's exception passes; the list is
    filled then too. Raises RingError if events were lost: a list with holes would be misread. A
    program's loss is of no ring, so where a session has several, a loss in another is one too.
    """
    captured: list[Any] = []
    with session.events(kind, timeout=TICK_SECONDS, **how) as events:
        several = len(session.rings) > 1
        before = _lost(session)
        follower = Follower(session, events, captured.append, settle)
        try:
            yield captured
        except BaseException:
            with suppress(Exception):  # the block's own tells more
                follower.finish()
            raise
        follower.finish()
        dropped = events.counts().dropped
    lost = _lost(session) - before
    if lost > 0 or dropped:
        name = kind if isinstance(kind, str) else kind.__name__
        raise RingError(
            f"capture {name}: {len(captured)} came, {max(lost, 0)} were lost in the kernel"
            f"{' (all rings)' * several} and {dropped} in a queue "
            "(make the ring or the queue larger: map_sizes=, queue_size=)"
        )


def _lost(session: Session) -> int:
    """Return what found no space in the kernel, in all rings."""
    with suppress(ClosedError):
        stats = session.stats()
        return stats.lost - sum(each.dropped for each in stats.rings.values())
    return 0
