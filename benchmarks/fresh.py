"""Run one function of a benchmark in a process of its own."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 120


@cache
def _byte_code() -> str:
    # An installation has byte code; a work tree on which nobody may write has none.
    folder = tempfile.TemporaryDirectory(prefix="kt-bench-")
    atexit.register(folder.cleanup)
    return folder.name


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without our own options, but with ``more``."""
    plain = {name: text for name, text in os.environ.items() if not name.startswith("KERNELTRACE_")}
    plain.pop("PYTHONDONTWRITEBYTECODE", None)
    path = os.pathsep.join(filter(None, (str(ROOT), plain.get("PYTHONPATH"))))
    return {**plain, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": _byte_code(), **more}


def call(
    module: str, function: str, environ: dict[str, str] | None = None, **arguments: Any
) -> Any:
    """Call ``benchmarks.module.function(**arguments)`` there; what it returns must be JSON."""
    command = [sys.executable, "-m", "benchmarks.fresh", module, function, json.dumps(arguments)]
    run = subprocess.run(
        command,
        env=environment(**(environ or {})),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    if run.returncode != 0:
        raise RuntimeError(f"{module}.{function} in a fresh process: {run.stderr.strip()}")
    return json.loads(run.stdout.splitlines()[-1])


def main(module: str, function: str, arguments: str) -> None:
    called = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    print(json.dumps(called(**json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
