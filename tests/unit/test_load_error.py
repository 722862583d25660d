"""What str() of a LoadError shows of a verifier's log: the verdict and where it was reached."""

from __future__ import annotations

import pickle

import pytest

from kerneltrace_core.errors import LoadError, PrivilegeError

pytestmark = pytest.mark.unit

BEGIN = "libbpf: prog 'bad': -- BEGIN PROG LOAD LOG --"
END = [
    "-- END PROG LOAD LOG --",
    "libbpf: prog 'bad': failed to load: -13",
    "libbpf: failed to load object 'bad'",
]
STATISTICS = "processed 7 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0"

# As Linux 6.18 and libbpf 1.1 write it.
NULL_POINTER = [
    "libbpf: prog 'bad': BPF program load failed: Permission denied",
    BEGIN,
    "arg#0 reference type('UNKNOWN ') size cannot be determined: -22",
    "0: R1=ctx() R10=fp0",
    "; int k = bpf_get_smp_processor_id(); @ bad.bpf.c:5",
    "0: (85) call bpf_get_smp_processor_id#8       ; R0=scalar(smin=smin32=0,smax=umax=1)",
    "1: (63) *(u32 *)(r10 -4) = r0         ; R0=scalar(smin=0) R10=fp0 fp-8=mmmm????",
    "2: (bf) r2 = r10                      ; R2=fp0 R10=fp0",
    ";  @ bad.bpf.c:0",
    "3: (07) r2 += -4                      ; R2=fp-4",
    "; long *v = bpf_map_lookup_elem(&m, &k); @ bad.bpf.c:6",
    "4: (18) r1 = 0xffff888104ca4a00       ; R1=map_ptr(map=m,ks=4,vs=8)",
    "6: (85) call bpf_map_lookup_elem#1    ; R0=map_value_or_null(id=1,map=m,ks=4,vs=8)",
    "; *v += 1; @ bad.bpf.c:7",
    "7: (79) r1 = *(u64 *)(r0 +0)",
    "R0 invalid mem access 'map_value_or_null'",
    STATISTICS,
    *END,
]
UNREACHABLE = [BEGIN, "unreachable insn 3", STATISTICS, *END]
# The registers of both states come behind the verdict.
LOOP = [
    BEGIN,
    "; while (1) @ bad.bpf.c:9",
    "3: (05) goto pc-1",
    "infinite loop detected at insn 3",
    "cur state: R1=ctx() R10=fp0",
    "old state: R1=ctx() R10=fp0",
    STATISTICS,
    *END,
]
# 6.1 writes registers on lines of their own.
OLD = [
    BEGIN,
    "; return *place;",
    "4: (61) r0 = *(u32 *)(r1 +0)",
    "R1 invalid mem access 'scalar'",
    "verification time 92 usec",
    "stack depth 0",
    STATISTICS,
    *END,
]


def shown(log: list[str]) -> list[str]:
    told = str(LoadError("load BPF object bad: Permission denied (EACCES)", errno=13, log=log))
    first, *lines = told.splitlines()
    assert first == "load BPF object bad: Permission denied (EACCES)"
    return [line.strip() for line in lines]


def test_the_verdict_is_shown_with_its_instruction_and_line_of_c() -> None:
    assert shown(NULL_POINTER) == [
        "(14 other log lines left out; all are in .log)",
        "; long *v = bpf_map_lookup_elem(&m, &k); @ bad.bpf.c:6",
        "4: (18) r1 = 0xffff888104ca4a00",
        "6: (85) call bpf_map_lookup_elem#1",
        "; *v += 1; @ bad.bpf.c:7",
        "7: (79) r1 = *(u64 *)(r0 +0)",
        "R0 invalid mem access 'map_value_or_null'",
    ]


def test_a_verdict_without_an_instruction_stands_alone() -> None:
    assert shown(UNREACHABLE)[1:] == ["unreachable insn 3"]


def test_registers_behind_the_verdict_are_left_out() -> None:
    assert shown(LOOP)[1:] == [
        "; while (1) @ bad.bpf.c:9",
        "3: (05) goto pc-1",
        "infinite loop detected at insn 3",
    ]
    assert shown(OLD)[1:] == [
        "; return *place;",
        "4: (61) r0 = *(u32 *)(r1 +0)",
        "R1 invalid mem access 'scalar'",
    ]


def test_of_two_programs_the_last_ones_verdict_is_shown() -> None:
    assert shown(NULL_POINTER + UNREACHABLE)[1:] == ["unreachable insn 3"]


def test_without_a_verifiers_log_the_last_lines_are_shown() -> None:
    log = [f"libbpf: line {number}" for number in range(9)]
    assert shown(log) == ["(3 other log lines left out; all are in .log)", *log[3:]]
    assert shown([]) == []
    assert shown([*log[:2], STATISTICS])[1:] == log[:2]


def test_a_log_that_is_cut_off_anywhere_is_no_reason_to_fail() -> None:
    for end in range(len(NULL_POINTER)):
        for begin in range(end):
            log = NULL_POINTER[begin:end]
            error = LoadError("load", log=log)
            assert len(str(error).splitlines()) <= 15
            assert error.log == tuple(log)


def test_errors_keep_their_errno_and_log_when_they_are_pickled() -> None:
    for kind in (LoadError, PrivilegeError):
        error = kind("act object: cause", errno=13, log=["a", "b"])
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (kind, str(error))
        assert (again.errno, again.log) == (13, ("a", "b"))
