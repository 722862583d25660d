"""Pages of docs/ about sessions are run from top to bottom, each in one folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.bpf_source import compile_bpf
from harness.pages import DOCS, FENCE, KERNEL_PAGES, run_page
from harness.tiers import Require

# What a page needs besides what all do.
NEEDS = {
    "session": ("capability:cap_sys_admin", "tracefs"),
    "probes": ("perf_events", "uprobes", "perf_links", "tracefs"),
}

pytestmark = [pytest.mark.any_kernel, pytest.mark.deadline(300)]


@pytest.mark.parametrize("page", KERNEL_PAGES)
def test_the_page_runs_from_top_to_bottom(page: str, require: Require, tmp_path: Path) -> None:
    require("tracepoint:sys_enter", "ring_buffer", *NEEDS.get(page, ()))

    assert run_page(page, tmp_path) >= KERNEL_PAGES[page]


def block_of(document: Path, beginning: str) -> str:
    """Return the one block of a document that begins so, what it is included."""
    texts = [block["info"] + "\n" + block["text"] for block in FENCE.finditer(document.read_text())]
    [found] = [text for text in texts if text.startswith(beginning)]
    return found.partition("\n")[2]


def test_the_example_of_the_readme_runs_with_the_program_of_the_page(
    require: Require, tmp_path: Path
) -> None:
    require("tracepoint:sys_enter", "ring_buffer")
    program = block_of(DOCS / "session.md", "c file=opens.bpf.c\n")
    (tmp_path / "opens.bpf.o").write_bytes(compile_bpf(program))
    example = block_of(
        DOCS.parent / "README.md", "python\nfrom kerneltrace_core import Filter, Session\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    *events, counted = done.stdout.splitlines()
    assert events
    assert not [line for line in events if ": descriptor " not in line]
    opened = re.fullmatch(r"(\d+) opened, 0 lost", counted)
    assert opened is not None
    assert int(opened[1]) >= len(events)
