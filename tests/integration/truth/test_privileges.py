"""The same truth inside a pid namespace, with two capabilities, and with none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from integration.truth.conftest import environment
from integration.truth.verdicts import totals_of, wrongs_in
from kerneltrace_core.kernel.support import Support

pytestmark = pytest.mark.integration

NEW_PIDS = ("unshare", "--pid", "--fork", "--mount-proc", "--")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
TWO = "+bpf,+perfmon"
WITH_TWO = (*NOBODY, f"--inh-caps={TWO}", f"--ambient-caps={TWO}", f"--bounding-set=-all,{TWO}")
WITH_NONE = (*NOBODY, "--inh-caps=-all", "--bounding-set=-all")
ARGUMENTS = ("integration.truth.matrix", "--concurrency", "64", "--loop")

Launch = Callable[..., subprocess.CompletedProcess[str]]
Require = Callable[..., None]


def can_run(*prefix: str) -> Support:
    """Tell whether this interpreter, and what it imports, run behind a command."""
    if os.geteuid() != 0 or shutil.which(prefix[0]) is None:
        return Support.no(f"needs root and {prefix[0]}")
    check = [*prefix, sys.executable, "-B", "-c", "import trio, uvloop, kerneltrace_core"]
    done = subprocess.run(
        check, capture_output=True, text=True, check=False, cwd="/", env=environment()
    )
    last = (done.stderr.strip() or "?").splitlines()[-1]
    return Support.no(last) if done.returncode else Support.yes()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_numbers_are_exact_in_a_new_pid_namespace(
    program: Launch, require: Require, loop: str
) -> None:
    require("a pid namespace", probe=lambda: can_run(*NEW_PIDS))

    result = json.loads(program(*ARGUMENTS, loop, prefix=NEW_PIDS).stdout)

    assert result["pid"] == 1
    assert result["backend"] == "bpf"
    assert wrongs_in(result) == []
    assert all(done == charged for done, charged in totals_of(result).values())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_numbers_are_exact_for_nobody_with_two_capabilities(
    program: Launch, require: Require, loop: str
) -> None:
    require("an interpreter for uid 65534", probe=lambda: can_run(*WITH_TWO))

    result = json.loads(program(*ARGUMENTS, loop, prefix=WITH_TWO).stdout)

    assert result["uid"] == 65534
    assert result["backend"] == "bpf"
    assert result["health"]["status"] == "ok"
    assert wrongs_in(result) == []
    assert all(done == charged for done, charged in totals_of(result).values())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_bytes_are_exact_from_proc_without_any_capability(
    program: Launch, require: Require, loop: str
) -> None:
    require("an interpreter for uid 65534", probe=lambda: can_run(*WITH_NONE))

    done = program(*ARGUMENTS, loop, prefix=WITH_NONE)
    result = json.loads(done.stdout)

    assert result["uid"] == 65534
    assert result["backend"] == "procfs"
    assert done.stderr.count("\n") == done.stderr.count("WARNING") == 1
    assert "CAP_BPF" in done.stderr
    measured: list[dict[str, Any]] = [row["charged"][0]["response"] for row in result["rows"]]
    assert None not in [numbers["read_bytes"] for numbers in measured]
    assert None not in [numbers["write_bytes"] for numbers in measured]
    assert wrongs_in(result) == []
