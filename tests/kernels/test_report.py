"""docs/kernels.md: cells from outcomes, and a page in the shape of the tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from report import Notes, feature_cell, module_cell, never_ran, render, render_text, shortcomings
from results import Case, Kernel, Results, parse_junit, read_results
from runs import RUNS, paranoid_of, prefix_of, pytest_arguments, selection_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "kernels.md"

JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest">
<testcase classname="tests.kernel.test_a" name="test_storage[1]"><properties>
<property name="asked" value="task_storage = {storage}; EINVAL: task storage" />
<property name="feature" value="requests" /></properties>{skipped}</testcase>
<testcase classname="tests.kernel.test_a.TestMore" name="test_plain" />
<testcase classname="tests.kernel.test_b" name="test_bad">
<failure message="assert 1 == 2">x</failure></testcase></testsuite></testsuites>
"""
SKIPPED = '<skipped type="pytest.skip" message="probe task_storage: no: EINVAL: task storage" />'


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Return the results of an old kernel without task storage, and of a host that has it."""
    for name, storage, skipped in (
        ("host-6.18.44", "yes", ""),
        ("5.10.0-46-cloud-amd64", "no", SKIPPED),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "root.xml").write_text(JUNIT.format(storage=storage, skipped=skipped))
    return read_results(tmp_path)


def test_kernels_are_in_order_and_the_host_is_last(results: Results) -> None:
    assert [kernel.title for kernel in results] == ["5.10.0-46-cloud-amd64", "6.18.44 (host)"]


def test_a_junit_file_tells_what_was_asked_and_how_it_ended() -> None:
    storage, plain, bad = parse_junit(JUNIT.format(storage="no", skipped=SKIPPED))

    assert (storage.test, storage.outcome) == ("test_a::test_storage[1]", "skipped")
    assert storage.answers[0].feature == "task_storage"
    assert storage.answers[0].reason == "EINVAL: task storage"
    assert storage.features == ("requests",)
    assert (plain.module, plain.outcome, plain.answers) == ("test_a", "passed", ())
    assert (bad.module, bad.outcome, bad.message) == ("test_b", "failed", "assert 1 == 2")


def test_a_teardown_that_fails_makes_its_test_failed() -> None:
    case = '<testcase classname="tests.kernel.test_a" name="test_x">{}</testcase>'
    error = '<error message="left behind" />'
    text = f"<t>{case.format('')}{case.format(error)}</t>"

    assert [case.outcome for case in parse_junit(text)] == ["failed"]


def test_a_cell_comes_from_the_outcomes_of_the_tests_that_need_the_feature(
    results: Results,
) -> None:
    old, host = (runs["root"] for runs in results.values())
    notes = Notes()

    assert feature_cell("task_storage", old, notes) == "no [1]"
    assert feature_cell("task_storage", host, notes) == "yes (1)"
    assert feature_cell("requests", old, notes) == "no [2]"
    assert feature_cell("requests", host, notes) == "yes (1)"
    assert feature_cell("elsewhere", host, notes) == "not asked"
    assert notes.lines() == [
        "- [1] EINVAL: task storage",
        "- [2] `task_storage`: EINVAL: task storage",
    ]


def test_a_failure_is_never_a_yes(results: Results) -> None:
    old, host = (runs["root"] for runs in results.values())

    assert module_cell("test_a", old) == "1, 1 no `task_storage`"
    assert module_cell("test_a", host) == "2"
    assert module_cell("test_b", host) == "**1 failed**, 0"
    assert module_cell("test_c", host) == "-"
    assert "test_b::test_bad failed on 6.18.44 (host), root" in shortcomings(results)


def test_what_was_skipped_must_have_run_on_another_kernel(results: Results) -> None:
    assert never_ran(results) == []

    alone = {kernel: runs for kernel, runs in results.items() if not kernel.is_host}

    assert never_ran(alone) == ["test_a::test_storage[1] (`task_storage`: EINVAL: task storage)"]
    assert "ran on none of the kernels" in shortcomings(alone)[0]


def test_a_skip_without_a_probe_is_a_shortcoming() -> None:
    case = Case("test_a", "test_x", "skipped", "today", (), ())
    kernel = Kernel("6.1.0", is_host=False)

    assert "test_a::test_x skipped by no probe on 6.1.0, root" in shortcomings(
        {kernel: {"root": (case,)}}
    )


def test_the_page_and_the_terminal_say_the_same(results: Results) -> None:
    page, text = render(results), render_text(results)

    assert "| feature | 5.10.0-46-cloud-amd64 | 6.18.44 (host) |" in page
    assert "| `task_storage` | no [2] | yes (1) |" in page
    assert "| `test_a` | 1, 1 no `task_storage` | 2 |" in page
    assert "@" not in page
    assert "1 passed, 1 failed, 1 skipped" in text
    assert "1 skipped by `task_storage`: EINVAL: task storage" in text


def test_a_run_has_the_privileges_that_its_name_says() -> None:
    assert prefix_of("root") == []
    assert prefix_of("root-2") == []
    assert selection_of("root", "kernel") == ["-m", "kernel"]
    assert selection_of("root-2", "kernel") == ["-m", "kernel", "-k", "nobody"]
    assert [paranoid_of(run) for run in RUNS] == [None, 3, 2, 2]
    assert "--reuid=65534" in prefix_of("nobody-3")
    assert "--ambient-caps=+bpf,+perfmon" in prefix_of("nobody-3")
    assert "--memlock=65536:65536" in prefix_of("nobody-3")
    assert selection_of("nobody-2", "kernel and smoke") == [
        "-m",
        "(kernel and smoke) and unprivileged",
    ]


def test_the_whole_tier_runs_unless_modules_are_named() -> None:
    assert pytest_arguments(["-x"]) == ["tests/kernel", "-x"]
    assert pytest_arguments(["tests/kernel/test_a.py"]) == ["tests/kernel/test_a.py"]


def features_in(tree: ast.AST) -> set[str]:
    """Return the features that a module names: require("..."), feature("...")."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("require", "feature", "needs"):
                found |= {
                    each.value
                    for each in node.args
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
    return found


@pytest.mark.skipif(not PAGE.exists(), reason="docs/kernels.md: not generated yet")
def test_the_page_has_a_row_for_each_module_and_each_feature_that_tests_name() -> None:
    page = PAGE.read_text()
    first = page.partition("## As root")[2].partition("\n## ")[0]
    features, _, modules = first.partition("| module |")
    files = sorted((ROOT / "tests" / "kernel").rglob("test_*.py"))
    named = set().union(*(features_in(ast.parse(file.read_text())) for file in files))
    rows = set(re.findall(r"^\| `([^`]+)` \|", features, re.MULTILINE))

    assert set(re.findall(r"^\| `(test_\w+)` \|", modules, re.MULTILINE)) == {
        file.stem for file in files
    }, "make test-kernels writes the page anew"
    assert named - rows == set(), "make test-kernels writes the page anew"
    assert "failed**" not in page
    assert "| not asked |" not in page
