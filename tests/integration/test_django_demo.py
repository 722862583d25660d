"""The bookshop's demo runs, and its table says where each view spends its time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.pace import time_factor
from harness.tiers import Require

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"
VIEWS = ("health", "index", "book", "rivals", "order", "cover", "export", "offers", "postage")
POSTAGE_MS = 50.0


def run_demo(**environment: str) -> str:
    """Return what the demo prints; it must end well, and without a word from the site."""
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "django_demo.py"), "--seconds", "1.5"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=90 * time_factor(),
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    return run.stdout


def rows_of(output: str) -> dict[str, list[str]]:
    """Return the cells of each view's row: requests, p50 wall, bar, cpu, run queue, blocked, ..."""
    rows = (line.split() for line in output.splitlines())
    return {row[0]: row[1:] for row in rows if row and row[0] in VIEWS}


def test_the_table_has_a_row_for_each_view(require: Require) -> None:
    require("thread_registration")

    output = run_demo()

    assert "the site said" not in output
    assert "backend bpf" in output
    rows = rows_of(output)
    assert set(rows) == set(VIEWS)
    assert float(rows["postage"][5]) >= POSTAGE_MS
    assert rows["postage"][6] == "sleep"
    assert float(rows["cover"][-1]) == 1  # fsync
    assert float(rows["order"][-1]) >= 1


def test_without_bpf_the_same_is_counted_from_proc() -> None:
    output = run_demo(KERNELTRACE_BACKEND="procfs")

    assert "backend procfs" in output
    assert set(rows_of(output)) == set(VIEWS)
