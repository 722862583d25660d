"""What docs/kernels.md says of the running kernel: a probe that said yes there may not say no."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

# A probe of these asks for the interpreter, not for the kernel.
NOT_THE_KERNELS = ("python:",)
ROOT_TITLE = "As root"
ROW = re.compile(r"^\| `(?P<feature>[^`]+)` \| (?P<cells>.*) \|$")

RECORDED = pytest.StashKey[frozenset[str]]()


def version_of(release: str) -> str:
    """Return the first two numbers of a release: 6.1.0-50-cloud-amd64 is 6.1."""
    return ".".join(re.findall(r"\d+", release)[:2])


def parse_recorded(page: str, release: str) -> frozenset[str]:
    """Return the features that the page's first table says yes to, as root, on this version."""
    _, _, section = page.partition(f"\n## {ROOT_TITLE}\n")
    lines = section.partition("\n## ")[0].splitlines()
    head = next((line for line in lines if line.startswith("| feature |")), None)
    if head is None:
        return frozenset()
    versions = [version_of(title) for title in head.strip("|").split("|")[1:]]
    if version_of(release) not in versions:
        return frozenset()
    column = versions.index(version_of(release))
    found = set()
    for line in lines:
        if line.startswith("| module |"):
            break
        row = ROW.match(line)
        if row is not None and row["cells"].split(" | ")[column].startswith("yes"):
            found.add(row["feature"])
    return frozenset(each for each in found if not each.startswith(NOT_THE_KERNELS))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the page's path."""
    parser.addoption(
        "--recorded",
        type=Path,
        metavar="FILE",
        help="docs/kernels.md: fail a test that skips, as root, though its probe said yes there",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the page if it is to hold, and this process is the root that it speaks of."""
    page: Path | None = config.getoption("--recorded")
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    config.stash[RECORDED] = frozenset()
    if page is not None and is_root and page.exists():
        config.stash[RECORDED] = parse_recorded(page.read_text(), os.uname().release)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what holds, lest a page that does not know this kernel hold nothing unnoticed."""
    if config.getoption("--recorded") is not None:
        count = len(config.stash[RECORDED])
        terminalreporter.line(f"recorded here: {count} features that no test may skip for")
