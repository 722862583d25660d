"""What the coverage of a tier is told as."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.delitem(sys.modules, "measure_coverage", raising=False)


def test_the_closing_line_is_told_without_its_time() -> None:
    import measure_coverage

    output = "..s\n3 passed in 1.0s of a child\nx\n2 failed, 178 passed in 79.22s (0:01:19)\n"

    assert measure_coverage.closing_line(output) == "2 failed, 178 passed"
    assert measure_coverage.closing_line("killed") == "no closing line"


def test_a_tier_is_one_line() -> None:
    import measure_coverage

    totals = {"percent_covered": 57.04, "num_statements": 3536, "covered_lines": 2015}

    assert measure_coverage.line_of("unit", totals, "178 passed") == (
        "coverage of the unit tier: 57.0 % of 3536 statements (under the tracer: 178 passed)"
    )
    assert measure_coverage.line_of("kernel", totals, "1 failed") == (
        "coverage of the kernel tier: 57.0 % of 3536 statements "
        "(under the tracer, not judged: 1 failed)"
    )


def test_the_unit_tier_is_judged_and_a_tier_that_did_not_run_is_told() -> None:
    import measure_coverage

    ran, nothing = {"covered_lines": 2015}, {"covered_lines": 0}

    assert measure_coverage.verdict("unit", ran, 0) is None
    assert measure_coverage.verdict("kernel", ran, 1) is None
    assert measure_coverage.verdict("unit", ran, 1) == (
        "unit tier: failed under the tracer: pytest's exit status is 1"
    )
    assert measure_coverage.verdict("kernel", nothing, 0) == (
        "measure coverage of the kernel tier: no statement ran"
    )


def test_the_newest_interpreter_measures_first(tmp_path: Path) -> None:
    import measure_coverage

    for version in ("3.9", "3.10", "3.13"):
        (tmp_path / ".venvs" / version / "bin").mkdir(parents=True)
        (tmp_path / ".venvs" / version / "bin" / "python").touch()

    assert [path.parts[-3] for path in measure_coverage.interpreters(tmp_path)] == [
        "3.13", "3.10", "3.9", ".venv",
    ]  # fmt: skip
