"""What README.md and docs/ show is Python that compiles, and what they call runnable runs.

A fence says so itself: ```python run. Commands run in a page's story alone.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    where: str
    language: str
    runs: bool
    text: str


def parse_blocks(document: str, name: str) -> Iterator[Block]:
    """Yield the fenced blocks of a Markdown document.

    Where one of them is a file, the page is one story in one folder, and run as a whole elsewhere.
    """
    story = " file=" in document
    for match in FENCE.finditer(document):
        words = match["info"].split()
        line = document.count("\n", 0, match.start()) + 1
        yield Block(
            f"{name}:{line}",
            words[0] if words else "",
            "run" in words[1:] and not story,
            match["text"],
        )


def documents() -> list[Path]:
    return sorted(
        path for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")] if path.exists()
    )


BLOCKS = [
    block
    for path in documents()
    for block in parse_blocks(path.read_text(), str(path.relative_to(ROOT)))
]


def blocks(language: str, *, runs: bool) -> list[object]:
    return [
        pytest.param(block, id=block.where)
        for block in BLOCKS
        if block.language == language and (block.runs or not runs)
    ]


@pytest.mark.parametrize("block", blocks("python", runs=False))
def test_python_blocks_compile(block: Block) -> None:
    compile(block.text, block.where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", blocks("python", runs=True))
def test_runnable_python_blocks_run(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block.text)

    run = subprocess.run(
        [sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )

    assert run.returncode == 0, run.stderr


def test_commands_that_run_are_part_of_a_story() -> None:
    assert blocks("console", runs=True) == []


def test_a_fence_says_its_language_and_whether_it_runs() -> None:
    document = "text\n```python run\nx = 1\n```\n\n```\nplain\n```\n```console\n$ ls\n```\n"

    assert list(parse_blocks(document, "a.md")) == [
        Block("a.md:2", "python", True, "x = 1\n"),
        Block("a.md:6", "", False, "plain\n"),
        Block("a.md:9", "console", False, "$ ls\n"),
    ]
