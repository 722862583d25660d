"""A kernel that lacks what requests need: the right words, and the numbers that /proc has."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest

from harness.tiers import Require, ask
from kerneltrace_core.doctor.examine import examine
from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.requests import RequestTracer, TracerOptions
from traced import on_loop, tracing

pytestmark = [pytest.mark.kernel, pytest.mark.unprivileged]

FEATURE = "a kernel before 5.14"
WORDS = r'this kernel has no SEC\("syscall"\) programs.*5\.14'


def lacks_registration() -> Support:
    """Say yes where SEC("syscall") programs, of 5.14, are missing."""
    answer = ask("thread_registration")
    if answer.works:
        return Support.no('this kernel has SEC("syscall") programs')
    return Support.yes(answer.reason)


@pytest.fixture(autouse=True)
def on_an_old_kernel(require: Require) -> None:
    require(FEATURE, probe=lacks_registration)


def test_required_refuses_in_words() -> None:
    tracer = RequestTracer(TracerOptions(backend="bpf", required=True))

    with pytest.raises(KernelTraceError, match=WORDS):
        tracer.start()
    tracer.stop()


def test_without_required_one_warning_says_why_and_proc_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "kerneltrace")
    with tracing(backend="auto", required=False) as tracer:
        stats = on_loop(tracer, lambda: sum(range(100_000)))
        health = tracer.health()

    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "counting from /proc instead" in warnings[0]
    assert re.search(WORDS, warnings[0])
    assert stats.as_dict()["backend"] == "procfs"
    assert stats.cpu_ns
    assert stats.syscalls is None
    assert health["status"] == "degraded"


def test_run_says_so_and_runs_the_command_without() -> None:
    required, plain = (
        subprocess.run(
            [sys.executable, "-m", "kerneltrace_core.cli", "run", *options, "--", "echo", "ran"],
            capture_output=True,
            text=True,
            check=False,
        )
        for options in (["--required"], [])
    )

    assert (required.returncode, required.stdout) == (125, "")
    assert re.search(WORDS, required.stderr)
    assert (plain.returncode, plain.stdout) == (0, "ran\n")
    assert re.search(f"{WORDS}.*running without", plain.stderr)


def test_the_doctor_says_the_same() -> None:
    diagnosis = examine()

    found = {finding.name: finding.support for finding in diagnosis.needs}
    assert diagnosis.backend.name == "procfs"
    told = found["thread registration"]
    assert re.search(WORDS, f"{told.reason} {told.remedy}")
