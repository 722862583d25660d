"""A free-threaded Python is told that the C parts are not for it, before anything is compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# As such a build answers: nothing else of it matters to the check.
FREE_THREADED = """
import runpy, sys, sysconfig
sysconfig.get_config_vars()["Py_GIL_DISABLED"] = 1
sys.argv = ["setup.py", "-q", "build_ext", "--build-lib", sys.argv[1], "--build-temp", sys.argv[1]]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing is compiled elsewhere")
def test_the_build_refuses_in_one_line(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FREE_THREADED, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip

    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("build kerneltrace: this is a free-threaded Python 3.")
    assert "(use the default build of Python 3." in last
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".o", ".so")]
