"""The rules that the other tests stand on: skips, deadlines and leaks turn a session red."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import leaks
from harness.leaks import MARK, carries, is_zombie, parse_program_ids
from harness.recorded import parse_recorded, version_of
from harness.tiers import tier_of

RunTier = Callable[..., pytest.RunResult]

PREAMBLE = """
import pytest
from kerneltrace_core.kernel.support import Support
no, yes = (lambda: Support.no("told so", "do this")), Support.yes
"""


@pytest.fixture
def run_tier(pytester: pytest.Pytester) -> RunTier:
    """Return a function that runs a module of a tier under this project's rules."""
    plugins = [
        f"-pharness.{name}" for name in ("recorded", "tiers", "deadlines", "leaks", "trials")
    ]
    pytester.makeini(
        "[pytest]\nmarkers =\n unit\n kernel\n integration\n deadline\n feature\n needs\n times\n"
        "addopts = --strict-markers\n"
    )

    def run(tier: str, source: str, *arguments: str) -> pytest.RunResult:
        folder = pytester.path / "tests" / tier
        folder.mkdir(parents=True)
        (folder / "test_it.py").write_text(PREAMBLE + source)
        return pytester.runpytest_inprocess(*plugins, *arguments)

    return run


def test_a_test_belongs_to_the_tier_of_its_folder() -> None:
    assert tier_of("tests/kernel/deep/test_a.py::test_b") == "kernel"
    assert tier_of("tests/kernels/test_a.py::test_b[tests/integration]") == "unit"
    assert tier_of("tests/test_a.py::test_b") is None


def test_marks_select_by_folder(run_tier: RunTier) -> None:
    run_tier("unit", "def test_a(): pass", "-m", "unit").assert_outcomes(passed=1)


def test_a_probes_no_skips_and_is_told(run_tier: RunTier) -> None:
    result = run_tier(
        "kernel",
        "def test_a(require): require('x', probe=yes)\n"
        "def test_b(require): require('thing', probe=no)\n",
    )

    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["kernel tier: 1 passed, 1 skipped", "thing: 1 tests: told so (do this)"]
    )


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def test_a(): pytest.skip('today')", "*may skip only through require*: today*"),
        ("@pytest.mark.skip\ndef test_a(): pass", "*may skip only through require*"),
        (
            "@pytest.mark.skipif(True, reason='other')\ndef test_a(): pass",
            "*may skip only through require*: other*",
        ),
        ("pytest.skip('all', allow_module_level=True)", "*may not skip itself*"),
        ("pytest.importorskip('no_such_module')", "*may not skip itself*"),
    ],
)
def test_a_kernel_test_that_skips_otherwise_fails(
    run_tier: RunTier, source: str, told: str
) -> None:
    result = run_tier("kernel", source)

    assert result.ret != 0
    result.stdout.fnmatch_lines([told])


def test_a_unit_test_may_skip_as_it_likes(run_tier: RunTier) -> None:
    result = run_tier("unit", "def test_a(): pytest.skip('macOS')")

    assert result.ret == 0
    result.assert_outcomes(skipped=1)


def test_a_session_in_which_every_kernel_test_skipped_is_red(run_tier: RunTier) -> None:
    result = run_tier("kernel", "def test_a(require): require('thing', probe=no)")

    assert result.ret == 1
    result.stdout.fnmatch_lines(["*red: no kernel test ran*", "*1 skipped*"])


def test_tests_that_are_only_listed_are_not_red(run_tier: RunTier) -> None:
    assert run_tier("kernel", "def test_a(): pass", "--collect-only").ret == 0


def test_an_unknown_feature_is_an_error(run_tier: RunTier) -> None:
    result = run_tier("kernel", "def test_a(require): require('no_such_probe')")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*require 'no_such_probe': no such probe"])


def test_the_interpreter_can_be_asked_for(run_tier: RunTier) -> None:
    result = run_tier(
        "kernel",
        "def test_a(require): require('python:3.10')\n"
        "def test_b(require): require('python:3.99')\n",
    )

    result.assert_outcomes(passed=1, skipped=1)


def test_a_marker_asks_before_the_fixtures_are_made(run_tier: RunTier) -> None:
    result = run_tier(
        "kernel",
        "@pytest.fixture(scope='module')\n"
        "def broken(): raise OSError\n"
        "@pytest.mark.needs('python:3.10', 'python:3.99')\n"
        "def test_a(broken): pass\n"
        "@pytest.mark.needs('python:3.10')\n"
        "def test_b(): pass\n",
    )

    result.assert_outcomes(passed=1, skipped=1)


@pytest.mark.skipif(sys.platform == "win32", reason="deadlines need SIGALRM")
def test_a_test_that_hangs_fails_at_its_deadline(run_tier: RunTier) -> None:
    result = run_tier(
        "unit",
        "import time\n@pytest.mark.deadline(0.2)\ndef test_a(): time.sleep(60)\n"
        "def test_b(): pass\n",
    )

    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*deadline of 0.2 s has passed*"])


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_a_process_left_behind_turns_the_session_red_and_is_ended(
    run_tier: RunTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "PATIENCE_SECONDS", 0.2)

    result = run_tier(
        "kernel",
        "import subprocess\n"
        "def test_a():\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        "    print('child', child.pid)\n"
        "    child.returncode = 0  # no ResourceWarning\n",
        "-s",
    )

    assert result.ret == 1
    result.stdout.fnmatch_lines(["*red: left behind*", "process * still running*sleep 60*"])
    pid = next(line.split()[-1] for line in result.outlines if "child " in line)
    deadline = time.monotonic() + 5
    while not is_zombie(Path(f"/proc/{pid}")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_zombie(Path(f"/proc/{pid}"))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_a_process_is_known_by_the_mark_in_its_environment() -> None:
    environment = {**os.environ, MARK: "this"}
    with subprocess.Popen(
        ["cat"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        # Its environment can be read only some time after exec() has begun.
        child.stdin.write(b"running\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"running\n"

        assert carries(Path(f"/proc/{child.pid}"), "this")
        assert not carries(Path(f"/proc/{child.pid}"), "thi")


def test_a_descriptor_tells_the_program_that_it_holds() -> None:
    program = ["pos:\t0", "flags:\t02000002", "prog_type:\t26", "prog_id:\t1234"]
    link = ["link_type:\ttracing", "link_id:\t7", "prog_tag:\t00", "prog_id:\t99"]

    assert parse_program_ids(program) == {1234}
    assert parse_program_ids(link) == {99}
    assert parse_program_ids(["pos:\t0", "prog_id:\t0"]) == set()


RECORDED_PAGE = """# page

## As root

| feature | 5.10.0-46 | {version}.44-cloud (host) |
|---|---|---|
| `thing` | no [1] | yes (3) |
| `other` | yes (1) | no [1] |
| `python:3.99` | yes (1) | yes (1) |

| module | 5.10.0-46 | {version}.44-cloud (host) |
|---|---|---|
| `test_it` | 1 | 1 |

## As somebody

| feature | {version}.44-cloud (host) |
|---|---|
| `other` | yes (1) |
"""


def test_a_page_says_what_a_kernel_had_as_root() -> None:
    page = RECORDED_PAGE.format(version="6.18")

    assert parse_recorded(page, "6.18.99-other") == {"thing"}
    assert parse_recorded(page, "5.10.1") == {"other"}
    assert parse_recorded(page, "6.1.0") == frozenset()
    assert parse_recorded("# nothing yet\n", "6.18.99") == frozenset()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="the page speaks of root"
)
def test_a_test_that_ran_on_this_kernel_and_is_made_to_skip_fails(
    run_tier: RunTier, pytester: pytest.Pytester
) -> None:
    version = version_of(os.uname().release)
    (pytester.path / "kernels.md").write_text(RECORDED_PAGE.format(version=version))

    result = run_tier(
        "kernel",
        "def test_a(require): require('thing', probe=no)\n"
        "def test_b(require): require('other', probe=no)\n"
        "def test_c(): pass\n",
        "--recorded=kernels.md",
    )

    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*probe thing: no: told so; but on a kernel of this version*"])
    result.stdout.fnmatch_lines(["recorded here: 1 features that no test may skip for"])


def test_a_kernel_test_is_not_let_fail(run_tier: RunTier) -> None:
    result = run_tier("kernel", "@pytest.mark.xfail\ndef test_a(): assert 0\ndef test_b(): pass\n")

    result.assert_outcomes(passed=1, failed=1)


def test_ci_holds_this_kernel_to_the_page() -> None:
    script = (Path(__file__).parents[2] / ".ci" / "run").read_text()

    assert script.rstrip().endswith("test-tiers ARGS=--recorded=docs/kernels.md")


SECOND = """
tried = []

@pytest.fixture
def fresh():
    return []

{mark}
def test_a(fresh):
    fresh.append(1)
    tried.append(1)
    assert fresh == [1]
    assert len(tried) == {passes}

def test_b():
    assert len(tried) == {tried}
"""


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_test_of_times_has_three_trials_and_is_told_of(run_tier: RunTier, passes: int) -> None:
    source = SECOND.format(mark="@pytest.mark.times", passes=passes, tried=passes)

    result = run_tier("kernel", source)

    result.assert_outcomes(passed=2)
    told = [line for line in result.outlines if line.endswith(f"test_a: {passes - 1} times")]
    assert len(told) == (passes > 1)


def test_the_third_trial_counts(run_tier: RunTier) -> None:
    source = SECOND.format(mark="@pytest.mark.times", passes=4, tried=3)

    run_tier("kernel", source).assert_outcomes(passed=1, failed=1)


def test_what_counts_has_one_trial(run_tier: RunTier) -> None:
    run_tier("kernel", SECOND.format(mark="", passes=2, tried=1)).assert_outcomes(
        passed=1, failed=1
    )
