"""The totals of a traced run are those that strace counts of the same work, untraced."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from integration.truth.verdicts import totals_of
from integration.truth.work import CALLS
from kerneltrace_core.kernel.support import Support

pytestmark = pytest.mark.integration

ARGUMENTS = ("integration.truth.matrix", "--concurrency", "32")

Launch = Callable[..., subprocess.CompletedProcess[str]]


def parse_summary(lines: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return calls and errors by name, from the table of ``strace -c``."""
    found = {}
    for line in lines:
        fields = line.split()
        if len(fields) in (5, 6) and fields[3].isdigit() and fields[-1] != "total":
            errors = int(fields[4]) if len(fields) == 6 else 0
            found[fields[-1]] = (int(fields[3]), errors)
    return found


def can_strace() -> Support:
    """Tell whether strace is there and may trace a child."""
    try:
        done = subprocess.run(
            ["strace", "-f", "--seccomp-bpf", "-c", "true"], capture_output=True, check=False
        )
    except FileNotFoundError:
        return Support.no("strace is not installed")
    return Support.no("strace may not trace") if done.returncode else Support.yes()


@pytest.fixture
def strace(
    program: Launch, require: Callable[..., None], open_tmp_path: Path
) -> Callable[..., dict[str, tuple[int, int]]]:
    require("strace", probe=can_strace)
    summary = open_tmp_path / "summary"

    def count(*options: str) -> dict[str, tuple[int, int]]:
        """Run the workload untraced by us, under strace; return calls and errors by name."""
        # With a seccomp filter only the calls that are counted stop the program.
        prefix = ("strace", "-f", "--seccomp-bpf", "-c", "-o", str(summary), *options, "--")
        arguments = (*ARGUMENTS, "--folder", str(open_tmp_path))
        done = program(*arguments, prefix=prefix, KERNELTRACE_ENABLED="0")
        result = json.loads(done.stdout)
        assert result["backend"] == "off"
        assert result["failures"] == []
        return parse_summary(summary.read_text().splitlines())

    return count


def test_totals_agree_with_strace_of_the_same_work_untraced(
    program: Launch, strace: Callable[..., dict[str, tuple[int, int]]], open_tmp_path: Path
) -> None:
    counted = strace("-e", "trace=" + ",".join(CALLS))
    # Only on the two paths: the interpreter opens files of its own.
    paths = [str(open_tmp_path / name) for name in ("data", "missing")]
    calls, errors = strace("-e", "trace=openat", "-P", paths[0], "-P", paths[1])["openat"]

    done = program(*ARGUMENTS, "--folder", str(open_tmp_path))
    result = json.loads(done.stdout)

    traced = {name: charged for name, (_, charged) in totals_of(result).items()}
    assert result["backend"] == "bpf"
    assert {name: (traced[name], 0) for name in CALLS} == counted
    assert traced["misses"] == errors
    # Before its work the program makes the file and opens it.
    assert calls - errors == traced["misses"] + 2
