"""docs/kernels.md: cells from outcomes, and a page in the shape of the tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from report import (
    ON_NO_MACHINE,
    TITLES,
    Notes,
    feature_cell,
    missing_runs,
    module_cell,
    needing,
    never_ran,
    render,
    render_text,
    shortcomings,
)
from results import Answer, Case, Kernel, Results, parse_junit, read_results
from runs import RUNS, paranoid_of, prefix_of, pytest_arguments, selection_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "kernels.md"

JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest">
<testcase classname="tests.kernel.test_a" name="test_storage[1]"><properties>
<property name="asked" value="task_storage = {storage}; EINVAL: task storage" />
<property name="feature" value="requests" /></properties>{skipped}</testcase>
<testcase classname="tests.kernel.test_a.TestMore" name="test_plain" />{more}
<testcase classname="tests.kernel.test_b" name="test_bad">
<failure message="assert 1 == 2">x</failure></testcase></testsuite></testsuites>
"""
# What a guest does not run.
OF_ANY_KERNEL = """
<testcase classname="tests.kernel.test_c" name="test_same"><properties>
<property name="any_kernel" value="yes" />
<property name="asked" value="cffi = yes; " /></properties></testcase>"""
SKIPPED = '<skipped type="pytest.skip" message="probe task_storage: no: EINVAL: task storage" />'


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Return the results of an old kernel without task storage, and of a host that has it."""
    for name, storage, skipped, more in (
        ("host-6.18.44", "yes", "", OF_ANY_KERNEL),
        ("5.10.0-46-cloud-amd64", "no", SKIPPED, ""),
    ):
        (tmp_path / name).mkdir()
        text = JUNIT.format(storage=storage, skipped=skipped, more=more)
        (tmp_path / name / "root.xml").write_text(text)
    return read_results(tmp_path)


def test_what_an_earlier_run_left_of_other_kernels_is_not_read(
    results: Results, tmp_path: Path
) -> None:
    assert len(results) == 2

    [kernel] = read_results(tmp_path, ["host-6.18.44"])

    assert kernel.is_host


def test_kernels_are_in_order_and_the_host_is_last(results: Results) -> None:
    assert [kernel.title for kernel in results] == ["5.10.0-46-cloud-amd64", "6.18.44 (host)"]


def test_a_junit_file_tells_what_was_asked_and_how_it_ended() -> None:
    text = JUNIT.format(storage="no", skipped=SKIPPED, more=OF_ANY_KERNEL)
    storage, plain, same, bad = parse_junit(text)

    assert (storage.test, storage.outcome) == ("test_a::test_storage[1]", "skipped")
    assert storage.answers[0].feature == "task_storage"
    assert storage.answers[0].reason == "EINVAL: task storage"
    assert storage.features == ("requests",)
    assert (plain.module, plain.outcome, plain.answers) == ("test_a", "passed", ())
    assert (plain.any_kernel, same.any_kernel) == (False, True)
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

    def cell(feature: str, cases: tuple[Case, ...]) -> str:
        return feature_cell(feature, cases, notes, needing(feature, (*old, *host)))

    assert cell("task_storage", old) == "no [1]"
    assert cell("task_storage", host) == "yes (1)"
    assert cell("requests", old) == "no [2]"
    assert cell("requests", host) == "yes (1)"
    assert cell("cffi", old) == "any kernel"
    assert cell("cffi", host) == "yes (1)"
    assert notes.lines() == [
        "- [1] EINVAL: task storage",
        "- [2] `task_storage`: EINVAL: task storage",
    ]


def test_what_no_test_came_to_ask_for_says_which_probe_was_before_it() -> None:
    notes = Notes()
    no = Answer("task_storage", "no", "EINVAL")
    skipped = Case("test_a", "test_x", "skipped", "", (no,), ())
    ran = Case("test_a", "test_x", "passed", "", (Answer("faults", "yes", ""),), ())

    asked = needing("faults", (skipped, ran))

    assert feature_cell("faults", [skipped], notes, asked) == "not asked [1]"
    assert feature_cell("faults", [ran], notes, asked) == "yes (1)"
    # Told yes itself, and not put to use for another probe's no.
    told = Case("test_a", "test_x", "skipped", "", (Answer("faults", "yes", ""), no), ())
    assert feature_cell("faults", [told], notes, asked) == "not asked [1]"
    # A hole that nothing explains: the page must not have it.
    assert feature_cell("faults", [], notes, asked) == "not asked"
    assert notes.lines() == ["- [1] `task_storage`: EINVAL"]


def test_a_failure_is_never_a_yes(results: Results) -> None:
    old, host = (runs["root"] for runs in results.values())

    assert module_cell("test_a", old) == "1, 1 no `task_storage`"
    assert module_cell("test_a", host) == "2"
    assert module_cell("test_b", host) == "**1 failed**, 0"
    assert module_cell("test_d", host, (*old, *host)) == "-"
    assert module_cell("test_c", host, (*old, *host)) == "1"
    assert module_cell("test_c", old, (*old, *host)) == "any kernel"
    assert "test_b::test_bad failed on 6.18.44 (host), root" in shortcomings(results)


def test_a_kernel_that_left_a_run_out_is_named(results: Results) -> None:
    old, host = "5.10.0-46-cloud-amd64", "host-6.18.44"

    assert missing_runs(results, [old, host, "6.1.0"]) == [
        *(f"no result of the run {run} on {old}" for run in RUNS[1:]),
        *(f"no result of the run {run} on 6.1.0" for run in RUNS),
    ]


def test_what_was_skipped_must_have_run_on_another_kernel(results: Results) -> None:
    assert never_ran(results) == {}

    alone = {kernel: runs for kernel, runs in results.items() if not kernel.is_host}

    assert list(never_ran(alone)) == ["test_a::test_storage[1]"]
    assert shortcomings(alone)[0] == (
        "test_a::test_storage[1] ran on none of the kernels (`task_storage`: EINVAL: task storage)"
    )
    assert "- `test_a::test_storage[1]`: `task_storage`: EINVAL: task storage" in render(alone)


def kernels_without(*features: str) -> Results:
    """Return kernels on each of which one of these features kept the one test from running."""
    return {
        Kernel(f"6.{number}.0", is_host=False): {
            "root": (
                Case("test_a", "test_x", "skipped", "", (Answer(name, "no", f"{number}"),), ()),
            )
        }
        for number, name in enumerate(features)
    }


def test_what_no_machine_has_is_told_and_fails_no_run() -> None:
    nowhere = kernels_without("hardware_events", "hardware_events")
    somewhere = kernels_without("hardware_events", "kprobe")

    assert ON_NO_MACHINE == ("hardware_events",)
    assert shortcomings(nowhere) == []
    assert "- `test_a::test_x`: `hardware_events`: 0; `hardware_events`: 1\n" in render(nowhere)
    # There the probe that is excused was not the only one: the hole is a hole.
    assert shortcomings(somewhere) == [
        "test_a::test_x ran on none of the kernels (`hardware_events`: 0; `kprobe`: 1)"
    ]


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
    assert "| `test_c` | any kernel | 1 |" in page
    assert "\n- `test_c`: 1\n" in page
    assert "@" not in page
    assert "1 passed, 1 failed, 1 skipped" in text
    assert "1 skipped by `task_storage`: EINVAL: task storage" in text


def test_a_run_has_the_privileges_that_its_name_says() -> None:
    assert prefix_of("root", in_guest=False) == []
    assert prefix_of("root-2", in_guest=False) == []
    assert selection_of("root", "kernel", in_guest=False) == ["-m", "kernel"]
    assert selection_of("root-2", "kernel", in_guest=False) == [
        *("-m", "kernel", "-k"),
        "test_nobody or for_nobody or two_capabilities or bpf_and_perfmon",
    ]
    assert [paranoid_of(run) for run in RUNS] == [None, 3, 2, 2]
    assert "--reuid=65534" in prefix_of("nobody-3", in_guest=False)
    assert "--ambient-caps=+bpf,+perfmon" in prefix_of("nobody-3", in_guest=False)
    assert "--memlock=65536:65536" in prefix_of("nobody-3", in_guest=False)
    assert "--reuid=65534" in prefix_of("nobody-2", in_guest=False)
    assert "prlimit" not in prefix_of("nobody-2", in_guest=False)
    assert "--memlock=unlimited:unlimited" in prefix_of("nobody-2", in_guest=True)
    assert selection_of("nobody-2", "kernel and smoke", in_guest=False) == [
        "-m",
        "kernel and smoke",
    ]
    assert selection_of("nobody-3", "kernel and smoke", in_guest=False) == [
        "-m",
        "(kernel and smoke) and unprivileged",
    ]


def test_a_guest_leaves_out_what_is_the_same_on_any_kernel_unless_it_is_asked_for() -> None:
    assert selection_of("root", "kernel", in_guest=True) == ["-m", "(kernel) and not any_kernel"]
    assert selection_of("nobody-2", "kernel", in_guest=True) == [
        "-m",
        "(kernel) and not any_kernel",
    ]
    assert selection_of("nobody-3", "kernel", in_guest=True) == [
        "-m",
        "((kernel) and not any_kernel) and unprivileged",
    ]
    asked = "kernel and any_kernel"
    assert selection_of("root", asked, in_guest=True) == ["-m", asked]


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
    shared = page.partition("## Tests of what does not depend on the kernel")[2].partition("\n## ")[
        0
    ]
    assert set(re.findall(r"^- `(test_\w+)`: \d+$", shared, re.MULTILINE)) == {
        file.stem for file in files if "mark.any_kernel" in file.read_text()
    }, "make test-kernels writes the page anew"
    assert "failed**" not in page
    assert "| not asked |" not in page
    assert "| - |" not in page
    assert set(TITLES.values()) <= set(re.findall(r"^## (.+)$", page, re.MULTILINE))
    kernels = features.partition("| feature |")[2].partition("\n")[0].strip(" |").split(" | ")
    assert [kernel.rpartition(" ")[2] == "(host)" for kernel in kernels] == [False] * 4 + [True]
