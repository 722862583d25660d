"""Read what the runs of the kernel tier left: JUnit files, one folder for each kernel."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from debian_kernel import version_key

HOST = "host"
Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Answer:
    """What a probe said when a test asked: yes, no (with the reason) or unknown."""

    feature: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Case:
    """One test of one run."""

    module: str
    name: str
    outcome: Outcome
    message: str
    answers: tuple[Answer, ...]
    features: tuple[str, ...]
    # What it shows does not depend on the kernel: it does not run in guests.
    any_kernel: bool = False

    @property
    def test(self) -> str:
        """Return the test's identity, the same on every kernel."""
        return f"{self.module}::{self.name}"


@dataclass(frozen=True)
class Kernel:
    """A kernel that the tier ran on."""

    release: str
    is_host: bool

    @property
    def title(self) -> str:
        """Return the head of its column."""
        return f"{self.release} (host)" if self.is_host else self.release


# By kernel, then by run.
Results = Mapping[Kernel, Mapping[str, tuple[Case, ...]]]


def parse_answer(text: str) -> Answer:
    """Return an answer as the test session wrote it: "feature = verdict; reason"."""
    feature, _, rest = text.partition(" = ")
    verdict, _, reason = rest.partition("; ")
    return Answer(feature, verdict, reason)


def module_of(classname: str) -> str:
    """Return the module in JUnit's class name: tests.kernel.test_a.TestB is test_a."""
    parts = classname.split(".")
    return next((part for part in parts if part.startswith("test_")), parts[-1])


def parse_junit(text: str) -> tuple[Case, ...]:
    """Return the tests in a JUnit file; a test's error in its teardown makes it failed."""
    cases: dict[tuple[str, str], Case] = {}
    for element in ElementTree.fromstring(text).iter("testcase"):
        properties = [
            (each.get("name", ""), each.get("value", "")) for each in element.iter("property")
        ]
        bad = next(
            (found for tag in ("failure", "error") if (found := element.find(tag)) is not None),
            None,
        )
        skipped = element.find("skipped")
        told = bad if bad is not None else skipped
        outcome: Outcome = (
            "failed" if bad is not None else "skipped" if skipped is not None else "passed"
        )
        case = Case(
            module_of(element.get("classname", "")),
            element.get("name", ""),
            outcome,
            told.get("message", "") if told is not None else "",
            tuple(parse_answer(value) for name, value in properties if name == "asked"),
            tuple(value for name, value in properties if name == "feature"),
            any(name == "any_kernel" for name, _ in properties),
        )
        key = (case.module, case.name)
        if key not in cases or outcome == "failed":
            cases[key] = case
    return tuple(cases.values())


def kernel_order(kernel: Kernel) -> tuple[bool, list[int]]:
    """Return what sorts kernels by age, the host last."""
    return kernel.is_host, version_key(kernel.release)


def read_results(folder: Path, only: Collection[str] | None = None) -> Results:
    """Return the results under a folder, or of some of its folders, oldest kernel first.

    The host is the last.
    """
    found: dict[Kernel, dict[str, tuple[Case, ...]]] = {}
    for file in sorted(folder.glob("*/*.xml")):
        name = file.parent.name
        if only is not None and name not in only:
            continue
        kernel = Kernel(name.removeprefix(f"{HOST}-"), name.startswith(f"{HOST}-"))
        found.setdefault(kernel, {})[file.stem] = parse_junit(file.read_text())
    return {kernel: found[kernel] for kernel in sorted(found, key=kernel_order)}


def of_run(results: Results, run: str) -> dict[Kernel, tuple[Case, ...]]:
    """Return one run of each kernel that has it."""
    return {kernel: runs[run] for kernel, runs in results.items() if run in runs}


def features_of(cases: Iterable[Case]) -> set[str]:
    """Return the features that were asked for or marked."""
    return {
        feature
        for case in cases
        for feature in (*case.features, *(answer.feature for answer in case.answers))
    }
