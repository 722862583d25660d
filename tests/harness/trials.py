"""Tests of times: a machine that others share may disturb them, so that each has three trials.

Only what compares clocks is marked ``times``; what counts has one trial, always. A test that needed
a second one is named at the end of the session.
"""

from __future__ import annotations

import pytest
from _pytest.runner import runtestprotocol

TRIALS = 3
REPEATED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin to note."""
    config.stash[REPEATED] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test of times until it passes, three times at most; the last trial counts."""
    if item.get_closest_marker("times") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for trial in range(TRIALS):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if trial + 1 == TRIALS or not any(report.failed for report in reports):
            break
        item.config.stash[REPEATED].append(item.nodeid)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Name what was tried again."""
    repeated = config.stash[REPEATED]
    if repeated:
        terminalreporter.section("tried again: tests of times, disturbed")
        for name in sorted(set(repeated)):
            terminalreporter.line(f"{name}: {repeated.count(name)} times")
