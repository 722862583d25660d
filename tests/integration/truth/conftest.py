"""Run programs of this folder in an environment of the test's choice, and read their JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kerneltrace_core

TESTS = Path(__file__).parents[2]
SECONDS = 120

Result = dict[str, Any]
Launch = Callable[..., subprocess.CompletedProcess[str]]


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment, with the paths that programs of the tests need."""
    source = Path(kerneltrace_core.__file__).parents[1]
    clean = {name: value for name, value in os.environ.items() if "KERNELTRACE_TEST" in name}
    rest = {name: value for name, value in os.environ.items() if not name.startswith("KERNELTRACE")}
    return {**rest, **clean, "PYTHONPATH": f"{TESTS}{os.pathsep}{source}", **more}


def launch(
    module: str, *arguments: str, prefix: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a module of the tests, behind a command like ``unshare``; return what it said."""
    done = subprocess.run(
        [*prefix, sys.executable, "-B", "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=environment(**variables),
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def program() -> Launch:
    """Return a function that runs a module of the tests: `program("integration.truth.matrix")`."""
    return launch


@pytest.fixture(scope="session")
def matrix(program: Launch) -> Callable[..., Result]:
    """Return a function that serves the matrix of constructs; each run is made once."""
    results: dict[tuple[str, int, int], Result] = {}

    def run(loop: str, concurrency: int, batches: int = 1) -> Result:
        key = (loop, concurrency, batches)
        if key not in results:
            results[key] = {}  # a run that fails is not made again for each test
            done = program(
                "integration.truth.matrix",
                *("--loop", loop),
                *("--concurrency", str(concurrency)),
                *("--batches", str(batches)),
            )
            assert done.stderr == ""
            results[key] = json.loads(done.stdout)
        return results[key]

    return run
