"""A fork waits for what is being opened or closed: nobody in its child knows those descriptors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_fork_meanwhile"]

# A fork goes on after so long whatever happens: who closes may wait for the one who forks.
PATIENCE_SECONDS = 5.0


class _Forks:
    """Who opens or closes something, by thread, each so many times."""

    # Entered as it is, not through the condition: there a signal handler may raise with it held.
    lock = threading.RLock()
    quiet = threading.Condition(lock)
    busy: dict[int, int] = {}
    forking: set[int] = set()
    watched = False


@contextmanager
def no_fork_meanwhile() -> Iterator[None]:
    """Let forks of other threads wait for the end of the block."""
    thread = threading.get_ident()
    with _Forks.lock:
        if not _Forks.watched and hasattr(os, "register_at_fork"):
            _Forks.watched = True
            os.register_at_fork(
                before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
            )
        # Or a fork would wait for ever where one thing after the other is opened.
        _Forks.quiet.wait_for(
            lambda: not _Forks.forking - {thread} or thread in _Forks.busy, PATIENCE_SECONDS
        )
        _Forks.busy[thread] = _Forks.busy.get(thread, 0) + 1
    try:
        yield
    finally:
        with _Forks.lock:
            left = _Forks.busy.pop(thread, 1) - 1
            if left > 0:
                _Forks.busy[thread] = left
            else:
                _Forks.quiet.notify_all()


def _before() -> None:
    """Wait, and keep all others from beginning until the fork is done."""
    own = threading.get_ident()
    _Forks.quiet.acquire()
    _Forks.forking.add(own)
    _Forks.quiet.wait_for(lambda: not _Forks.busy.keys() - {own}, PATIENCE_SECONDS)


def _after_in_parent() -> None:
    _Forks.forking.discard(threading.get_ident())
    _Forks.quiet.notify_all()
    _Forks.quiet.release()


def _after_in_child() -> None:
    own = threading.get_ident()
    _Forks.lock = threading.RLock()
    _Forks.quiet = threading.Condition(_Forks.lock)
    _Forks.forking = set()
    _Forks.busy = {thread: count for thread, count in _Forks.busy.items() if thread == own}
