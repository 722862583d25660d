"""Every benchmark still runs: once, tiny, without privileges and without looking at the clock."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ROOT / "benchmarks" / "run.py"
NAMES = (
    "steps",
    "request_in_process",
    "syscall",
    "switch",
    "joined",
    "boot",
    "server",
    "django_server",
    "events",
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="benchmarks are of Linux")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, RUN, *arguments],
        cwd=ROOT,
        env={**os.environ, "KERNELTRACE_ENABLED": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_says_what_it_found(name: str) -> None:
    run = bench("--smoke", name)

    if run.returncode == 1 and "left out" in run.stdout:
        needs = {"server": "wrk", "django_server": "wrk", "syscall": "cc", "switch": "cc"}
        missing = needs.get(name)
        if missing is not None and shutil.which(missing) is None:
            pytest.skip(f"this machine has no {missing}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"== {name}\n" in run.stdout


def test_all_benchmarks_are_tested() -> None:
    run = bench("no_such")

    assert run.returncode == 2
    assert ", ".join(NAMES) in run.stderr


def test_the_page_has_a_place_for_every_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import document

    page = document.render(document.TEMPLATE.read_text(), {})

    assert "{{" not in page
    asked = document.FIELD.findall(document.TEMPLATE.read_text())
    assert {words.split()[1] for words in asked if words.startswith("table ")} == set(NAMES)


def test_the_page_is_of_the_recorded_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import document

    results = json.loads((ROOT / "benchmarks" / "results.json").read_text())

    assert document.render(document.TEMPLATE.read_text(), results) == document.PAGE.read_text()


def test_a_missed_budget_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import document
    from benchmarks.rounds import Figure

    kept = Figure("kept", 0.9, "ratio", 0.88, 0.93, budget=0.97, at_least=True)
    added = Figure("added", 2.5, "us added", 2.4, 2.6, budget=4.0)

    assert document.markdown_table([kept, added]).splitlines()[2:] == [
        "| kept | 90.0% | 88.0% to 93.0% | >= 97.0% **missed** |",
        "| added | +2.50 us | +2.40 to +2.60 | <= +4.00 us |",
    ]
