#!/usr/bin/env python3
"""Measure which statements each tier of the tests runs, and print a line per tier.

usage: measure_coverage.py [TIER...]

The unit tier is judged as well: this is its run on the interpreter that measures. The other tiers
have runs of their own here: the tracer works in the traced threads, where tests compare CPU time
with a clock, so how these tests end is told and not judged; the run without it judges. Processes
that the tests start are measured too, if they keep their environment. From 3.12 on the interpreter
itself notes the lines, which costs least, so the newest of .venvs measures. Exit status 0 if a
statement ran in each tier and what is judged has passed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIERS = {"unit": ["tests/unit", "tests/kernels"], "kernel": ["tests/kernel"]}
TIERS["integration"] = ["tests/integration"]
JUDGED = ("unit",)
# A run that hangs ends; other work beside it makes none too long.
LIMIT_SECONDS = {"unit": 900, "kernel": 600, "integration": 1500}
PACKAGES = ("kerneltrace_asgi", "kerneltrace_core", "kerneltrace_django")
SETTINGS = """\
[run]
source = {folders}
disable_warnings = no-data-collected, couldnt-parse
data_file = {data_file}
parallel = true
sigterm = true
patch = subprocess
"""
FIND = """\
import importlib, sys
print(*(importlib.import_module(name).__path__[0] for name in sys.argv[1:]), sep=",")
"""
# pytest's closing line: "2 failed, 178 passed in 19.22s (0:00:19)".
CLOSING = re.compile(r"^(?:\d+ \w+, )*\d+ \w+ in [\d.]+s", re.MULTILINE)


def interpreters(root: Path) -> list[Path]:
    """Return the environments' interpreters, the one to measure with first."""
    others = root.glob(".venvs/3.*/bin/python")
    newest = sorted(others, key=lambda path: int(path.parts[-3].partition(".")[2]), reverse=True)
    return [*newest, root / ".venv" / "bin" / "python"]


def closing_line(output: str) -> str:
    """Return how a pytest run ended, in its own words without the time."""
    found = CLOSING.findall(output)
    return found[-1].rpartition(" in ")[0] if found else "no closing line"


def line_of(tier: str, totals: dict[str, float], ended: str) -> str:
    """Return the line that is printed for a tier."""
    judged = "" if tier in JUDGED else ", not judged"
    return (
        f"coverage of the {tier} tier: {totals['percent_covered']:.1f} % of "
        f"{totals['num_statements']:.0f} statements (under the tracer{judged}: {ended})"
    )


def verdict(tier: str, totals: dict[str, float], status: int) -> str | None:
    """Return what is wrong with a tier's run, pytest's exit status given; None if it is good."""
    if not totals["covered_lines"]:
        return f"measure coverage of the {tier} tier: no statement ran"
    if tier in JUDGED and status != 0:
        return f"{tier} tier: failed under the tracer: pytest's exit status is {status}"
    return None


def measure(tier: str, python: Path, folder: Path) -> str | None:
    """Run a tier under coverage.py, print its line, and return what is wrong."""
    settings = folder / f"{tier}.ini"
    found = subprocess.run(
        [python, "-c", FIND, *PACKAGES], stdout=subprocess.PIPE, text=True, check=True
    )
    settings.write_text(
        SETTINGS.format(folders=found.stdout.strip(), data_file=folder / f"data-of-{tier}")
    )
    environment = {**os.environ}
    if python.parts[-3] not in (".venv", "3.10", "3.11"):
        environment["COVERAGE_CORE"] = "sysmon"
    coverage = [str(python), "-m", "coverage"]
    run = subprocess.run(
        [*coverage, "run", f"--rcfile={settings}", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        + TIERS[tier],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        timeout=LIMIT_SECONDS[tier],
    )  # fmt: skip
    if tier in JUDGED:
        print(run.stdout + run.stderr, flush=True)
    report = folder / f"{tier}.json"
    for step in (["combine", "-q"], ["json", "-q", "-i", "-o", str(report)]):
        subprocess.run(
            [*coverage, step[0], f"--rcfile={settings}", *step[1:]], cwd=ROOT, check=True
        )
    totals: dict[str, float] = json.loads(report.read_text())["totals"]
    print(line_of(tier, totals, closing_line(run.stdout)), flush=True)
    return verdict(tier, totals, run.returncode)


def main() -> int:
    """Measure the tiers that were named, else all."""
    found = []
    python = next(path for path in interpreters(ROOT) if path.exists())
    version = subprocess.run([python, "-V"], stdout=subprocess.PIPE, text=True, check=True)
    print(f"measuring with {version.stdout.strip()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for tier in sys.argv[1:] or TIERS:
            found.append(measure(tier, python, Path(folder)))
    for wrong in filter(None, found):
        print(wrong, file=sys.stderr)
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main())
