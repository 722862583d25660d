"""Pages of docs/ about sessions are run from top to bottom, each in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.pages import KERNEL_PAGES, run_page
from harness.tiers import Require

# What a page needs besides what all do.
NEEDS = {"probes": ("perf_events", "uprobes", "perf_links")}

pytestmark = [pytest.mark.deadline(300)]


@pytest.mark.parametrize("page", KERNEL_PAGES)
def test_the_page_runs_from_top_to_bottom(page: str, require: Require, tmp_path: Path) -> None:
    require("tracepoint:sys_enter", "ring_buffer", *NEEDS.get(page, ()))

    assert run_page(page, tmp_path) >= KERNEL_PAGES[page]
