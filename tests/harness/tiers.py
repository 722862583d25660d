"""The three tiers: marks by folder, skips only by a probe's no, and red if no kernel test ran."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING

import pytest

from harness.mounts import bpffs_to_write, tracefs_to_read
from harness.recorded import RECORDED

if TYPE_CHECKING:
    from kerneltrace_core.kernel.support import Support

ROOT = "tests"
TIER_OF_FOLDER = {
    "unit": "unit",
    "kernels": "unit",
    "kernel": "kernel",
    "integration": "integration",
}
# A test of these tiers may skip only through `require`.
STRICT_TIERS = ("kernel", "integration")
MOUNT_PROBES: Mapping[str, Callable[[], Support]] = {
    "tracefs": tracefs_to_read,
    "bpffs": bpffs_to_write,
}

Require = Callable[..., None]


class Tiers:
    """What this session's kernel and integration tests did."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.selected: Counter[str] = Counter()
        self.refused: dict[str, Support] = {}
        self.skipped_by: Counter[str] = Counter()

    def red(self) -> bool:
        """Tell whether kernel tests were selected and none of them ran."""
        return self.selected["kernel"] > 0 and self.ran["kernel"] == 0


TIERS = pytest.StashKey[Tiers]()
# On a test: the probe that said no. The one reason for which a kernel or integration test may skip.
REFUSED_BY = pytest.StashKey[str]()
ANSWERS: dict[str, Support] = {}


def tier_of(nodeid: str) -> str | None:
    """Return the tier that a test belongs to by its folder."""
    parts = nodeid.split("::")[0].split("/")
    if parts[0] == ROOT and len(parts) > 2:
        return TIER_OF_FOLDER.get(parts[1])
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.stash[TIERS] = Tiers()
    # A session inside a session has modules of its own: another's answers are of other classes.
    ANSWERS.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, before -m selects."""
    for item in items:
        tier = tier_of(item.nodeid)
        if tier is not None:
            item.add_marker(tier)
        for marker in item.iter_markers("feature"):
            item.user_properties.append(("feature", str(marker.args[0])))
        if item.get_closest_marker("any_kernel"):
            item.user_properties.append(("any_kernel", "yes"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Count what is left after the selection."""
    if session.config.option.collectonly:
        return
    tiers = session.config.stash[TIERS]
    tiers.selected.update(tier_of(item.nodeid) or "" for item in session.items)


def ask(feature: str) -> Support:
    """Ask the probe that a feature's name stands for; see `require`."""
    from kerneltrace_core.kernel.btf import read_vmlinux, tracepoint_type_ids
    from kerneltrace_core.kernel.features import FeatureProbes
    from kerneltrace_core.kernel.privileges import read_privileges
    from kerneltrace_core.kernel.support import Support

    if feature in MOUNT_PROBES:
        return MOUNT_PROBES[feature]()
    kind, _, name = feature.partition(":")
    if kind == "python":
        wanted = tuple(int(number) for number in name.split("."))
        running = sys.version_info[: len(wanted)]
        return Support.yes() if running >= wanted else Support.no(f"this is Python {running}")
    privileges = read_privileges()
    if kind == "capability":
        held = privileges.capabilities
        if held is None:
            return Support.unknown("this process's capabilities cannot be read")
        return Support.no(f"this process lacks {name}") if held.missing([name]) else Support.yes()
    probes = FeatureProbes(privileges)
    if kind == "tracepoint":
        try:
            ids = tracepoint_type_ids(read_vmlinux(), [name])
        except OSError as error:
            return Support.no(f"the kernel's BTF cannot be read: {error}")
        return (
            probes.tracepoint(ids[name]) if name in ids else Support.no("not in the kernel's BTF")
        )
    probe: Callable[[], Support] | None = getattr(probes, feature, None)
    if probe is None:
        raise LookupError(f"require {feature!r}: no such probe")
    return probe()


def require_of(
    item: pytest.Item, features: tuple[str, ...], probe: Callable[[], Support] | None = None
) -> None:
    """Skip a test where a probe says no; note on it what was asked, for JUnit."""
    from kerneltrace_core.kernel.support import Verdict

    tiers = item.config.stash[TIERS]
    for feature in features:
        if feature not in ANSWERS:
            ANSWERS[feature] = ask(feature) if probe is None else probe()
        answer = ANSWERS[feature]
        note = f"{feature} = {answer.verdict.value}; {answer.reason}"
        item.user_properties.append(("asked", note))
        if answer.verdict is Verdict.NO:
            if feature in item.config.stash[RECORDED]:
                pytest.fail(
                    f"probe {feature}: no: {answer.reason}; but on a kernel of this version "
                    "and as root it has said yes (docs/kernels.md)"
                )
            tiers.refused[feature] = answer
            tiers.skipped_by[feature] += 1
            item.stash[REFUSED_BY] = feature
            pytest.skip(f"probe {feature}: no: {answer.reason}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ask for what the test's marker `needs` names, before any fixture is made."""
    for marker in item.iter_markers("needs"):
        require_of(item, marker.args)


@pytest.fixture
def require(request: pytest.FixtureRequest) -> Require:
    """Return a function that skips the test where a probe says no: `require("task_storage")`.

    Names: a probe of FeatureProbes without arguments ("thread_registration", "uprobe_multi"),
    "tracepoint:sched_switch", "capability:cap_sys_admin", "python:3.12", "tracefs", "bpffs"; or
    any name with a probe of the test's own, `require("seccomp filters", probe=function)`.
    Could-not-tell runs the test: what it does then is the better answer. What fixtures need is
    asked for by a marker, `pytest.mark.needs("task_storage")`.
    """

    def require_features(*features: str, probe: Callable[[], Support] | None = None) -> None:
        require_of(request.node, features, probe)

    return require_features


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a kernel or integration test that skips by any other way (xfail too); count the rest."""
    report = yield
    tier = tier_of(item.nodeid)
    if tier not in STRICT_TIERS:
        return report
    if report.skipped and REFUSED_BY not in item.stash:
        why = call.excinfo.value if call.excinfo else "no reason"
        report.outcome = "failed"
        report.longrepr = f"a {tier} test may skip only through require(...); this one did: {why}"
    if report.when == "call" and not report.skipped:
        item.config.stash[TIERS].ran[tier] += 1
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module of the kernel or integration tier that skips itself whole."""
    report = yield
    if report.outcome == "skipped" and tier_of(collector.nodeid) in STRICT_TIERS:
        report.outcome = "failed"
        report.longrepr = f"a module here may not skip itself (use require): {report.longrepr}"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Make a session red in which the kernel tier was skipped altogether."""
    if session.config.stash[TIERS].red() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def lines_by_tier(stats: Mapping[str, Sequence[object]]) -> list[str]:
    """Return a line for each tier that says how its tests ended."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in stats.get(outcome, ()):
            tier = tier_of(getattr(report, "nodeid", ""))
            if tier is not None:
                counts.setdefault(tier, Counter())[outcome] += 1
    return [
        f"{tier} tier: {', '.join(f'{count} {outcome}' for outcome, count in told.items())}"
        for tier, told in sorted(counts.items())
    ]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Say which probes said no, and how many tests each of them skipped."""
    tiers = config.stash[TIERS]
    for line in lines_by_tier(terminalreporter.stats):
        terminalreporter.line(line)
    if tiers.refused:
        terminalreporter.section("skipped by probes")
        for feature, answer in sorted(tiers.refused.items()):
            remedy = f" ({answer.remedy})" if answer.remedy else ""
            count = tiers.skipped_by[feature]
            terminalreporter.line(f"{feature}: {count} tests: {answer.reason}{remedy}")
    if tiers.red() and exitstatus == pytest.ExitCode.OK:
        terminalreporter.section("red: no kernel test ran", red=True)
        terminalreporter.line(f"{tiers.selected['kernel']} were selected")
