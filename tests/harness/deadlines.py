"""A deadline for every phase of every test: it fails, with all threads' stacks, and never hangs."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from harness.pace import time_factor

SECONDS = {"unit": 120.0, "kernel": 60.0, "integration": 180.0}


def deadline_of(item: pytest.Item) -> float:
    """Return the seconds that one phase of a test may take."""
    marker = item.get_closest_marker("deadline")
    if marker is not None:
        return float(marker.args[0]) * time_factor()
    tiers = (tier for tier in SECONDS if item.get_closest_marker(tier))
    return SECONDS[next(tiers, "unit")] * time_factor()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Fail the test if the block takes longer; POSIX and main thread only, else do nothing."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(file=sys.__stderr__ or 2)
        pytest.fail(f"deadline of {seconds:g} s has passed (the stacks are in stderr)")

    previous = signal.signal(signal.SIGALRM, late)
    # Again each second: an event loop may take the first failure for one callback's.
    outer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)
        signal.signal(signal.SIGALRM, previous)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Limit the fixtures' beginnings."""
    with deadline(deadline_of(item)):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Limit the test itself."""
    with deadline(deadline_of(item)):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Limit the fixtures' ends."""
    with deadline(deadline_of(item)):
        yield
