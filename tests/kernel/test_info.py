"""What the kernel says about programs is what it says to everybody else, and runs are counted."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest

from harness.leaks import program_ids
from harness.nobody import as_nobody
from harness.objects import compile_object
from harness.tiers import Require
from kerneltrace_core._native import facts, lib
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.errors import ClosedError, LoadError, PrivilegeError
from kerneltrace_core.session.info import bpf_stats, program_info

pytestmark = pytest.mark.kernel

RAW_TRACEPOINT, TRACING = 17, 26


@pytest.fixture
def calls(require: Require) -> Iterator[BpfObject]:
    require("tracepoint:sys_enter")
    with BpfObject(compile_object("calls").read_bytes(), "calls") as opened:
        opened.load()
        yield opened


def run(opened: BpfObject, times: int) -> None:
    fd = opened.program_fd("count_raw_calls")
    for _ in range(times):
        lib.run_program(fd, bytearray(struct.pack("=12Q", *[0] * 12)), "run count_raw_calls")


def fdinfo(opened: BpfObject, program: str) -> dict[str, str]:
    with open(f"/proc/self/fdinfo/{opened.program_fd(program)}") as lines:
        return dict(line.rstrip("\n").split(":\t") for line in lines)


def test_every_loaded_program_is_described_as_proc_describes_it(calls: BpfObject) -> None:
    found = program_info(calls)

    assert list(found) == ["count_calls", "count_raw_calls"]
    for name, info in found.items():
        told = fdinfo(calls, name)
        assert info.id == int(told["prog_id"])
        assert info.tag == told["prog_tag"]
        assert info.type == int(told["prog_type"])
        assert info.memory_bytes == int(told["memlock"]) > 0
        assert info.name == name
        assert info.verified_instructions == (int(told.get("verified_insns", "0")) or None)
        assert (info.run_time_ns, info.run_count) == (0, 0)
        ids = program_ids()
        assert ids is None or info.id in ids
    assert [info.type for info in found.values()] == [TRACING, RAW_TRACEPOINT]


def test_the_same_instructions_have_one_tag_and_one_number(calls: BpfObject) -> None:
    with BpfObject(compile_object("calls").read_bytes(), "calls") as twin:
        twin.load()
        first, second = program_info(calls), program_info(twin)

    for name in first:
        assert first[name].id != second[name].id
        assert first[name].instructions == second[name].instructions
        assert (first[name].instructions or 0) > 10
        assert first[name].jited_bytes == second[name].jited_bytes


def test_a_program_was_loaded_after_what_happened_before(require: Require) -> None:
    require("tracepoint:sys_enter")
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with BpfObject(compile_object("calls").read_bytes(), "calls") as opened:
        opened.load()
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

        assert all(before < each.loaded_ns < after for each in program_info(opened).values())


def test_programs_that_are_left_out_are_not_described(require: Require) -> None:
    require("tracepoint:sys_enter")
    with BpfObject(compile_object("calls").read_bytes(), "calls") as opened:
        opened.select({"count_calls"})
        opened.load()

        assert list(program_info(opened)) == ["count_calls"]


def test_runs_are_counted_inside_of_the_block_and_only_there(
    calls: BpfObject, require: Require
) -> None:
    require("capability:cap_sys_admin")
    with bpf_stats():
        run(calls, 100)
        with bpf_stats():
            run(calls, 20)
        run(calls, 3)
    run(calls, 50)

    found = program_info(calls)["count_raw_calls"]
    assert found.run_count == 123
    assert found.run_time_ns > 0
    assert found.run_mean_ns == found.run_time_ns / 123
    assert found.recursion_misses == 0
    assert program_info(calls)["count_calls"].run_count == 0


def test_runs_are_not_counted_for_those_who_may_not_ask(require: Require) -> None:
    require("capability:cap_setuid", "capability:cap_sys_admin")

    def ask() -> str:
        try:
            with bpf_stats():
                return "counted"
        except PrivilegeError as error:
            return str(error)

    assert as_nobody(ask) == (
        "count runs of BPF programs: CAP_SYS_ADMIN missing (give it CAP_SYS_ADMIN, or have root "
        "set the sysctl kernel.bpf_stats_enabled=1)"
    )


def test_a_closed_object_has_no_programs_to_describe(calls: BpfObject) -> None:
    calls.close()

    with pytest.raises(ClosedError, match="calls: it is closed"):
        program_info(calls)


def test_a_descriptor_of_nothing_is_an_error() -> None:
    with pytest.raises(LoadError, match=r"describe program: .* \(EBADFD?\)"):
        facts.program_info(1 << 20)
