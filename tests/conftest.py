"""What every tier shares: the rules of the tiers, deadlines, the search for leaks, folders."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no defect: a slow example fails nothing, neither by its time nor by being rare.
settings.register_profile(
    "kerneltrace", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kerneltrace")

pytest_plugins = [
    "pytester",
    "harness.mounts",
    "harness.recorded",
    "harness.tiers",
    "harness.deadlines",
    "harness.trials",
    "harness.leaks",
]


def pytest_configure() -> None:
    # A shell starts what runs in its background with it ignored, and so would be what tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def open_tmp_path() -> Iterator[Path]:
    """Return a new folder that any user can enter and write to, with a short path.

    pytest's own tmp_path is closed to other users, so a process that has dropped its uid cannot
    use it; and a Unix socket's path ends at 107 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="kt-") as name:
        folder = Path(name)
        folder.chmod(0o1777)
        yield folder
