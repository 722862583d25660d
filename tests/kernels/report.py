#!/usr/bin/env python3
"""Make docs/kernels.md of the results of the kernel tier.

usage: report.py FOLDER >docs/kernels.md

A row is a feature that tests ask a probe for, or that tests are marked with, and each cell comes
from how those tests ended; then a row for each module of the tier. What was skipped says by which
probe, and must have run on another kernel.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from results import HOST, Answer, Case, Kernel, Results, features_of, of_run, read_results
from runs import ROOT_RUN, RUNS

__all__ = ["HOST", "missing_runs", "read_results", "render", "render_text", "shortcomings"]

TITLES = {
    ROOT_RUN: "As root",
    "root-2": "As root, `perf_event_paranoid` 2, the tests that give up root",
    "nobody-2": "As uid 65534 with CAP_BPF and CAP_PERFMON, `perf_event_paranoid` 2",
    "nobody-3": "As uid 65534 with CAP_BPF and CAP_PERFMON, `perf_event_paranoid` 3",
}
# The words between the tables.
PAGE = Path(__file__).with_name("kernels.md.in")
NOT_REACHED = "not asked"
ANY_KERNEL = "any kernel"
# What none of the machines that these tests were written on has. A test that only such a probe kept
# from running anywhere is told on the page, and no shortcoming of the run.
ON_NO_MACHINE = ("hardware_events",)


class Notes:
    """Reasons, each written once and referred to by number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def refer(self, reason: str) -> str:
        """Return the reference to a reason."""
        number = self._numbers.setdefault(" ".join(reason.split()), len(self._numbers) + 1)
        return f"[{number}]"

    def lines(self) -> list[str]:
        """Return the notes as lines."""
        return [f"- [{number}] {reason}" for reason, number in self._numbers.items()]


def answer_of(case: Case, feature: str) -> Answer | None:
    """Return what a test was told of a feature, None if it did not ask."""
    return next((answer for answer in case.answers if answer.feature == feature), None)


def needing(feature: str, cases: Iterable[Case]) -> dict[str, Case]:
    """Return the tests that ask for a feature or are marked with it, by their identity."""
    return {
        case.test: case
        for case in cases
        if feature in case.features or answer_of(case, feature) is not None
    }


def feature_cell(
    feature: str, cases: Iterable[Case], notes: Notes, tests: Mapping[str, Case]
) -> str:
    """Return what a feature is on a kernel, from the tests that need it there or on others."""
    passed, failed, refused = 0, 0, []
    kept_from_asking = []
    for case in cases:
        said = answer_of(case, feature)
        refusal = said if said is not None and said.verdict == "no" else None
        if case.outcome == "skipped" and case.test in tests and refusal is None:
            kept_from_asking.append(case)
        if said is None and feature not in case.features:
            continue
        if refusal is not None:
            refused.append(refusal.reason)
        elif case.outcome == "skipped":
            # Another of its probes said no, so this one's yes was not put to use.
            if feature in case.features:
                refused.append(f"{why_skipped(case)}")
        else:
            failed += case.outcome == "failed"
            passed += case.outcome == "passed"
    if failed:
        return f"**{failed} failed**, {passed} passed"
    if refused and passed:
        return f"in part: {passed}, else no {notes.refer(refused[0])}"
    if refused:
        return f"no {notes.refer(refused[0])}"
    if passed:
        return f"yes ({passed})"
    if kept_from_asking:
        return f"{NOT_REACHED} {notes.refer(why_skipped(kept_from_asking[0]))}"
    return ANY_KERNEL if all(test.any_kernel for test in tests.values()) else NOT_REACHED


def why_skipped(case: Case) -> str:
    """Return the probe that skipped a test, and its reason."""
    said = next((answer for answer in case.answers if answer.verdict == "no"), None)
    return f"`{said.feature}`: {said.reason}" if said else case.message or "no reason"


def probe_of(case: Case) -> str:
    """Return the name of the probe that skipped a test."""
    said = next((answer for answer in case.answers if answer.verdict == "no"), None)
    return f"`{said.feature}`" if said else "?"


def module_cell(module: str, cases: Iterable[Case], elsewhere: Iterable[Case] = ()) -> str:
    """Return how a module's tests ended on a kernel, given those of all kernels."""
    own = [case for case in cases if case.module == module]
    if not own:
        others = [case for case in elsewhere if case.module == module]
        return ANY_KERNEL if others and all(case.any_kernel for case in others) else "-"
    count = {name: sum(case.outcome == name for case in own) for name in ("passed", "failed")}
    parts = [f"**{count['failed']} failed**"] if count["failed"] else []
    parts.append(str(count["passed"]))
    skips: dict[str, int] = {}
    for case in own:
        if case.outcome == "skipped":
            skips[probe_of(case)] = skips.get(probe_of(case), 0) + 1
    parts += [f"{number} no {probe}" for probe, number in sorted(skips.items())]
    return ", ".join(parts)


def table(head: str, kernels: Iterable[Kernel], rows: Mapping[str, list[str]]) -> list[str]:
    """Return a Markdown table."""
    titles = [kernel.title for kernel in kernels]
    lines = [f"| {' | '.join([head, *titles])} |", f"|{'---|' * (len(titles) + 1)}"]
    return lines + [f"| {' | '.join([f'`{name}`', *cells])} |" for name, cells in rows.items()]


def tables_of_run(results: Results, run: str, notes: Notes) -> list[str]:
    """Return a run's two tables."""
    by_kernel = of_run(results, run)
    everything = [case for cases in by_kernel.values() for case in cases]
    features = {
        feature: [
            feature_cell(feature, cases, notes, needing(feature, everything))
            for cases in by_kernel.values()
        ]
        for feature in sorted(features_of(everything))
    }
    modules = {
        module: [module_cell(module, cases, everything) for cases in by_kernel.values()]
        for module in sorted({case.module for case in everything})
    }
    lines = [*table("feature", by_kernel, features), ""] if features else []
    return [*lines, *table("module", by_kernel, modules)]


def never_ran(results: Results) -> dict[str, list[Case]]:
    """Return the tests that were skipped on every kernel, as root: each kernel's skip of them."""
    found: dict[str, list[Case]] = {}
    for cases in of_run(results, ROOT_RUN).values():
        for case in cases:
            found.setdefault(case.test, []).append(case)
    return {
        test: cases
        for test, cases in sorted(found.items())
        if all(case.outcome == "skipped" for case in cases)
    }


def reasons_of(cases: Iterable[Case]) -> str:
    """Return why a test was skipped, each reason once."""
    return "; ".join(dict.fromkeys(why_skipped(case) for case in cases))


def is_on_no_machine(case: Case) -> bool:
    """Tell whether what kept a test from running is found on no machine here."""
    said = next((answer for answer in case.answers if answer.verdict == "no"), None)
    return said is not None and said.feature in ON_NO_MACHINE


def of_any_kernel(results: Results) -> dict[str, int]:
    """Return how many tests of each module, as root, show what does not depend on the kernel."""
    found = {
        case.test: case.module
        for cases in of_run(results, ROOT_RUN).values()
        for case in cases
        if case.any_kernel
    }
    return dict(sorted(Counter(found.values()).items()))


def shortcomings(results: Results) -> list[str]:
    """Return what keeps the tables from being whole: failures, skips without a probe, holes."""
    found = [
        f"{test} ran on none of the kernels ({reasons_of(cases)})"
        for test, cases in never_ran(results).items()
        if not all(is_on_no_machine(case) for case in cases)
    ]
    for kernel, runs in results.items():
        for run, cases in runs.items():
            for case in cases:
                if case.outcome == "failed":
                    found.append(f"{case.test} failed on {kernel.title}, {run}")
                elif case.outcome == "skipped" and probe_of(case) == "?":
                    found.append(f"{case.test} skipped by no probe on {kernel.title}, {run}")
    return found


def missing_runs(results: Results, folders: Iterable[str]) -> list[str]:
    """Return what a kernel's folder lacks: a guest leaves every run, the host root's at least."""
    found = {
        f"{HOST}-{kernel.release}" if kernel.is_host else kernel.release: runs
        for kernel, runs in results.items()
    }
    return [
        f"no result of the run {run} on {folder}"
        for folder in folders
        for run in ((ROOT_RUN,) if folder.startswith(HOST) else RUNS)
        if run not in found.get(folder, {})
    ]


def render(results: Results) -> str:
    """Return the whole page."""
    notes = Notes()
    tables = []
    for run in RUNS:
        if of_run(results, run):
            tables += [f"## {TITLES[run]}", "", *tables_of_run(results, run, notes), ""]
    missing = [f"- `{test}`: {reasons_of(cases)}" for test, cases in never_ran(results).items()]
    shared = [f"- `{module}`: {count}" for module, count in of_any_kernel(results).items()]
    parts = {
        "TABLES": tables,
        "NOTES": notes.lines(),
        "ANY_KERNEL": shared or ["None."],
        "RAN_NOWHERE": missing or ["None."],
    }
    page = PAGE.read_text()
    for name, lines in parts.items():
        page = page.replace(f"@{name}@", "\n".join(lines).rstrip())
    return page


def render_text(results: Results) -> str:
    """Return the tables for a terminal: a line for each kernel and run."""
    lines = []
    for kernel, runs in results.items():
        for run, cases in runs.items():
            count = {
                outcome: sum(case.outcome == outcome for case in cases)
                for outcome in ("passed", "failed", "skipped")
            }
            told = ", ".join(f"{number} {outcome}" for outcome, number in count.items() if number)
            lines.append(f"{kernel.title:<40} {run:<10} {told}")
            skips: dict[str, int] = {}
            for case in cases:
                if case.outcome == "skipped":
                    skips[why_skipped(case)] = skips.get(why_skipped(case), 0) + 1
            lines += [f"    {number} skipped by {why}" for why, number in sorted(skips.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render(read_results(Path(sys.argv[1]))))
