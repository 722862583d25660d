"""Pages of docs/ that are run as a reader would: from top to bottom, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import kerneltrace_core

DOCS = Path(__file__).parents[2] / "docs"
SOURCE = Path(kerneltrace_core.__file__).parents[1]
# How many blocks of a page are run at least: what is no longer found is not passed over.
KERNEL_PAGES = {"session": 10, "events": 9, "maps": 7, "probes": 7, "loss": 2}
UNIT_PAGES = {"testing": 3}
# Pages that go on with the programs of another one.
GOES_ON = {"loss": "session"}

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def story_pages() -> set[str]:
    """Return the pages with blocks that are files, which only make sense as a whole."""
    return {page.stem for page in DOCS.glob("*.md") if is_story(page.read_text())}


def is_story(document: str) -> bool:
    """Tell whether a page is run as a whole."""
    return any(" file=" in block["info"] for block in FENCE.finditer(document))


def run_page(page: str, folder: Path) -> int:
    """Write the files of a page into a folder and run what it says is run; return how many."""
    ran = 0
    if page in GOES_ON:
        _compile_programs(GOES_ON[page], folder)
    for block in FENCE.finditer((DOCS / f"{page}.md").read_text()):
        words = block["info"].split()
        files = [word.removeprefix("file=") for word in words if word.startswith("file=")]
        for name in files:
            (folder / name).write_text(block["text"])
        if "run" not in words:
            continue
        ran += 1
        if words[0] == "python":
            _run([sys.executable, files[0]], folder)
        for line in block["text"].splitlines() if words[0] == "console" else ():
            _run(line.removeprefix("$ "), folder)
    return ran


def _compile_programs(page: str, folder: Path) -> None:
    for block in FENCE.finditer((DOCS / f"{page}.md").read_text()):
        kind, *words = block["info"].split() or [""]
        if kind == "c":
            (folder / words[0].removeprefix("file=")).write_text(block["text"])
        for line in block["text"].splitlines() if kind == "console" else ():
            if line.startswith("$ clang "):
                _run(line.removeprefix("$ "), folder)


def _run(command: list[str] | str, folder: Path) -> None:
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
