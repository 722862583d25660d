"""A fork waits for who opens or closes, and nobody waits for himself."""

from __future__ import annotations

import os
import threading

import pytest

from kerneltrace_core.session import forking
from kerneltrace_core.session.forking import no_fork_meanwhile

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
]


def fork() -> int:
    """Return how a child that opens something ended."""
    child = os.fork()
    if not child:
        with no_fork_meanwhile():
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_waits_for_another_thread() -> None:
    inside, done = threading.Event(), []

    def opens() -> None:
        with no_fork_meanwhile(), no_fork_meanwhile():
            inside.set()
            while not forking._Forks.forking:
                pass
            done.append(True)

    thread = threading.Thread(target=opens)
    thread.start()
    inside.wait(10)

    status = fork()

    assert (status, done) == (7, [True])
    thread.join()


def test_a_fork_does_not_wait_for_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "PATIENCE_SECONDS", 1e6)

    with no_fork_meanwhile():
        assert fork() == 7


def test_garbage_that_is_collected_in_a_fork_is_closed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forking, "PATIENCE_SECONDS", 1e6)
    forking._before()
    try:
        with no_fork_meanwhile():
            pass
    finally:
        forking._after_in_parent()

    assert (forking._Forks.busy, forking._Forks.forking) == ({}, set())
