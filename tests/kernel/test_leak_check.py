"""The search for leaks sees a program that a session leaves loaded, and no stranger's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from harness import bpf_objects
from harness.leaks import MARK, LeakCheck, program_ids
from harness.tiers import Require
from kerneltrace_core.kernel.bpfcall import BpfCall, Instruction
from kerneltrace_core.kernel.support import Support

pytestmark = pytest.mark.smoke

RAW_TRACEPOINT = 17
HOLDER = f"""
from kerneltrace_core.kernel.bpfcall import BpfCall, Instruction
held = BpfCall().prog_load({RAW_TRACEPOINT}, Instruction.return_zero())
print("holding", flush=True)
input()
"""


@pytest.fixture(autouse=True)
def check(require: Require) -> LeakCheck:
    require("capability:cap_sys_admin", "thread_registration")
    check = LeakCheck()
    check.before = program_ids()
    return check


def bpftool() -> Support:
    return Support.yes() if shutil.which("bpftool") else Support.no("it is not installed")


@contextmanager
def holder(mark: str | None) -> Iterator[None]:
    """Run a process that holds one program, with a session's mark or none."""
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    if mark is not None:
        environment[MARK] = mark
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield
        process.communicate("\n")


def becomes(count: int, leaked: Callable[[], set[int]]) -> bool:
    """Wait, for the grace period after which the kernel frees a program, until `count` leak."""
    deadline = time.monotonic() + 10
    while len(leaked()) != count and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(leaked()) == count


def test_a_program_is_a_leak_until_it_is_closed(check: LeakCheck) -> None:
    program = BpfCall().prog_load(RAW_TRACEPOINT, Instruction.return_zero())
    try:
        assert len(check.leaked_programs()) == 1
    finally:
        os.close(program)

    assert becomes(0, check.leaked_programs)


def test_a_program_that_a_child_of_the_session_holds_is_a_leak(check: LeakCheck) -> None:
    with holder(check.mark):
        assert len(check.leaked_programs()) == 1

    assert becomes(0, check.leaked_programs)


def test_a_strangers_program_is_none(check: LeakCheck) -> None:
    with holder(None):
        assert check.leaked_programs() == set()


def test_what_a_process_of_the_session_still_holds_is_new_after_a_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bpf_objects, "GONE_SECONDS", 0.2)
    monkeypatch.setattr(bpf_objects, "objects_by_bpftool", set)
    program = -1
    try:
        with (
            pytest.raises(AssertionError, match=r"new by all_objects: .*prog_id"),
            bpf_objects.nothing_new_remains(),
        ):
            program = BpfCall().prog_load(RAW_TRACEPOINT, Instruction.return_zero())
    finally:
        os.close(program)


def test_what_a_stranger_holds_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf_objects, "GONE_SECONDS", 0.2)
    with ExitStack() as later, bpf_objects.nothing_new_remains():
        later.enter_context(holder(None))


def test_bpftool_lists_what_the_kernel_does(require: Require) -> None:
    require("bpftool", probe=bpftool)
    program = BpfCall().prog_load(RAW_TRACEPOINT, Instruction.return_zero())
    try:
        ours = bpf_objects.held_objects([os.getpid()])
        assert len(ours) >= 1
        assert ours <= bpf_objects.objects_by_bpftool()
    finally:
        os.close(program)
