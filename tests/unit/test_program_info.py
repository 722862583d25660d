"""What /proc tells of a program's memory is read; what it does not tell is unknown."""

from __future__ import annotations

import pytest

from kerneltrace_core.session.info import ProgramInfo, parse_memory

FDINFO = """pos:\t0
flags:\t02000002
mnt_id:\t15
ino:\t1071
prog_type:\t26
prog_jited:\t1
prog_tag:\tf3b8d406ee458642
memlock:\t8192
prog_id:\t154385
run_time_ns:\t0
"""


def test_memory_is_read_where_the_kernel_tells_it() -> None:
    assert parse_memory(FDINFO.splitlines()) == 8192


@pytest.mark.parametrize("text", ["", "memlock:\n", "memlock:\tmuch\n", "pos:\t0\n"])
def test_memory_that_is_not_told_is_unknown(text: str) -> None:
    assert parse_memory(text.splitlines()) is None


def test_the_mean_of_no_run_is_unknown() -> None:
    info = ProgramInfo(1, "00", 26, "x", 0, run_time_ns=0, run_count=0, recursion_misses=0)
    ran = ProgramInfo(1, "00", 99, "x", 0, run_time_ns=500, run_count=4, recursion_misses=0)

    assert info.run_mean_ns is None
    assert info.type_name == "tracing"
    assert ran.run_mean_ns == 125
    assert ran.type_name == "type 99"
