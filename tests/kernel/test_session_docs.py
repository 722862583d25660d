"""Pages of docs/ are run from top to bottom, each in one folder, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kerneltrace_core

ROOT = Path(__file__).parents[2]
SOURCE = Path(kerneltrace_core.__file__).parents[1]
PAGES = {"session": 7, "maps": 4}  # and how many of their blocks are run
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = [pytest.mark.deadline(300)]


def run(command: list[str] | str, folder: Path) -> None:
    binaries = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(SOURCE),
    }
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs_from_top_to_bottom(
    page: str, require: Callable[..., None], tmp_path: Path
) -> None:
    require("tracepoint:sys_enter", "ring_buffer")
    ran = 0

    for block in FENCE.finditer((ROOT / "docs" / f"{page}.md").read_text()):
        words = block["info"].split()
        files = [word.removeprefix("file=") for word in words if word.startswith("file=")]
        for name in files:
            (tmp_path / name).write_text(block["text"])
        if "run" not in words:
            continue
        ran += 1
        if words[0] == "python":
            run([sys.executable, files[0]], tmp_path)
        for line in block["text"].splitlines() if words[0] == "console" else ():
            run(line.removeprefix("$ "), tmp_path)

    assert ran >= PAGES[page]
