"""Pages of docs/ that need no kernel are run from top to bottom; all others elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.pages import KERNEL_PAGES, UNIT_PAGES, is_story, run_page, story_pages


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="BPF objects: on Linux")
@pytest.mark.deadline(120)
@pytest.mark.parametrize("page", UNIT_PAGES)
def test_the_page_runs_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    assert run_page(page, tmp_path) >= UNIT_PAGES[page]


def test_every_page_with_files_is_run_by_one_of_the_tiers() -> None:
    assert story_pages() == {*KERNEL_PAGES, *UNIT_PAGES}
    assert not KERNEL_PAGES.keys() & UNIT_PAGES.keys()


def test_a_page_is_a_story_if_one_of_its_blocks_is_a_file() -> None:
    assert is_story("text\n```python file=a.py run\nx = 1\n```\n")
    assert not is_story("about ` file=`\n```python run\nx = 1\n```\n")
