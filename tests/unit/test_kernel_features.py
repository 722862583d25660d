from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kerneltrace_core.errors import UnsupportedError
from kerneltrace_core.kernel import features
from kerneltrace_core.kernel.bpfcall import BpfCall, Instruction, call_numbers
from kerneltrace_core.kernel.capabilities import CapabilitySets, parse_capabilities
from kerneltrace_core.kernel.features import FeatureProbes
from kerneltrace_core.kernel.limits import Limit
from kerneltrace_core.kernel.lockdown import Lockdown
from kerneltrace_core.kernel.privileges import Privileges, explain_refusal
from kerneltrace_core.kernel.seccomp import Seccomp, parse_seccomp
from kerneltrace_core.kernel.support import Support, Verdict
from unit.fake_kernel import KPROBE, SYSCALL, TASK_STORAGE, TRACING, FakeKernel

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent / "golden"
BOTH = frozenset({"cap_bpf", "cap_perfmon"})
ALLOWED = Privileges(
    CapabilitySets(effective=BOTH, permitted=BOTH, bounding=BOTH),
    initial_user_namespace=True,
    lockdown=Lockdown("none"),
    seccomp=Seccomp("none", 0, False),
)
NAMES = (
    "bpf_call",
    "mmapable_array",
    "shared_maps",
    "task_storage",
    "ring_buffer",
    "kernel_reads",
    "thread_registration",
    "perf_events",
    "uprobe_multi",
)


def from_status(name: str) -> Privileges:
    lines = (GOLDEN / name).read_text().splitlines()
    return Privileges(parse_capabilities(lines), True, Lockdown(None), parse_seccomp(lines))


def ask_all(probes: FeatureProbes) -> dict[str, Support]:
    answers = {name: getattr(probes, name)() for name in NAMES}
    answers["region_memory"] = probes.region_memory(1 << 20)
    answers["tracepoint"] = probes.tracepoint(7)
    return answers


def assert_all_closed(kernel: FakeKernel) -> None:
    for descriptor in set(kernel.descriptors):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_kernel_that_has_all_answers_yes_and_every_descriptor_is_closed() -> None:
    kernel = FakeKernel()
    answers = ask_all(FeatureProbes(ALLOWED, kernel))
    assert {answer.verdict for answer in answers.values()} == {Verdict.YES}
    assert kernel.descriptors
    assert_all_closed(kernel)


def test_an_old_kernel_says_what_it_lacks_and_since_when_others_have_it() -> None:
    kernel = FakeKernel(without_maps=[TASK_STORAGE], without_programs=[SYSCALL, KPROBE])
    answers = ask_all(FeatureProbes(ALLOWED, kernel))
    assert answers["task_storage"] == Support.no(
        "EINVAL: this kernel has no task storage", "Linux 5.11 or later", errno.EINVAL
    )
    assert answers["thread_registration"].remedy == "Linux 5.14 or later"
    assert answers["uprobe_multi"].remedy == "Linux 6.6 or later"
    assert answers["shared_maps"].works
    assert_all_closed(kernel)


def test_einval_for_a_tracepoint_that_btf_has_is_odd_and_so_unknown() -> None:
    kernel = FakeKernel(without_programs=[TRACING])
    answer = FeatureProbes(ALLOWED, kernel).tracepoint(7)
    assert answer.verdict is Verdict.UNKNOWN
    assert answer.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("status", "reason", "remedy"),
    [
        ("status-6.18-none.txt", "CAP_BPF, CAP_PERFMON missing", "give it CAP_BPF, CAP_PERFMON"),
        ("status-docker-default.txt", "CAP_BPF, CAP_PERFMON missing", "give it"),
        ("status-permitted-only.txt", "CAP_BPF, CAP_PERFMON permitted", "setcap ...=ep, not =p"),
    ],
)
def test_eperm_without_the_capabilities_names_them(status: str, reason: str, remedy: str) -> None:
    kernel = FakeKernel(refuse=errno.EPERM)
    answer = FeatureProbes(from_status(status), kernel).tracepoint(7)
    assert answer.verdict is Verdict.NO
    assert answer.reason.startswith(reason)
    assert remedy in answer.remedy
    assert answer.errno == errno.EPERM


def test_eperm_with_all_that_it_needs_is_unknown_and_names_the_suspects() -> None:
    privileges = Privileges(
        ALLOWED.capabilities, True, Lockdown("integrity"), Seccomp("filter", 1, False)
    )
    answer = FeatureProbes(privileges, FakeKernel(refuse=errno.EPERM)).task_storage()
    assert answer.verdict is Verdict.UNKNOWN
    assert "a seccomp filter is on, kernel lockdown is integrity" in answer.reason
    assert answer.remedy == ""


def test_capabilities_of_a_user_namespace_do_not_count() -> None:
    privileges = Privileges(ALLOWED.capabilities, initial_user_namespace=False)
    answer = explain_refusal(errno.EPERM, privileges, BOTH)
    assert answer.verdict is Verdict.NO
    assert "user namespace" in answer.reason


def test_a_helper_hidden_by_lockdown_is_told_from_an_old_kernel() -> None:
    kernel = FakeKernel(refuse_programs=errno.EINVAL)
    locked = Privileges(ALLOWED.capabilities, True, Lockdown("confidentiality"))
    answer = FeatureProbes(locked, kernel).kernel_reads()
    assert answer.verdict is Verdict.NO
    assert "lockdown" in answer.reason
    assert "lockdown=none" in answer.remedy
    assert "Linux 5.5" in FeatureProbes(ALLOWED, kernel).kernel_reads().remedy


def test_a_seccomp_filter_that_refuses_bpf_itself_is_named() -> None:
    privileges = Privileges(
        ALLOWED.capabilities, True, Lockdown("none"), Seccomp("filter", 1, False)
    )
    answer = FeatureProbes(privileges, FakeKernel(odd=errno.EPERM)).bpf_call()
    assert answer.verdict is Verdict.NO
    assert answer.reason == "EPERM: a seccomp filter refuses bpf()"
    assert "seccomp" in answer.remedy


def test_no_bpf_call_at_all_names_the_kernel_option() -> None:
    answer = FeatureProbes(ALLOWED, FakeKernel(odd=errno.ENOSYS)).bpf_call()
    assert answer.verdict is Verdict.NO
    assert "CONFIG_BPF_SYSCALL" in answer.remedy


def test_a_large_map_refused_beside_a_small_one_is_the_memlock_limit() -> None:
    probes = FeatureProbes(ALLOWED, FakeKernel(refuse_maps_above=65536))
    assert probes.region_memory(4096).works
    answer = probes.region_memory(1 << 20)
    assert answer.verdict is Verdict.NO
    assert "RLIMIT_MEMLOCK" in answer.reason
    assert "LimitMEMLOCK=infinity" in answer.remedy


@pytest.mark.parametrize(
    ("limit", "largest", "told"),
    [
        (Limit(65536, 65536), 65536, "EPERM: RLIMIT_MEMLOCK is 64 KiB, and this kernel charges"),
        (Limit(65536, 65536), None, ""),
        (Limit(None, None), 65536, ""),
        (Limit(1 << 30, 1 << 30), 65536, ""),
        (None, 65536, ""),
    ],
    ids=["counts", "does not count", "no limit", "too large to try", "could not tell"],
)
def test_a_limit_of_locked_memory_is_in_the_way_where_it_counts(
    monkeypatch: pytest.MonkeyPatch, limit: Limit | None, largest: int | None, told: str
) -> None:
    monkeypatch.setattr(features, "read_memlock", lambda: limit)

    answer = FeatureProbes(ALLOWED, FakeKernel(refuse_maps_above=largest)).locked_memory()

    assert (answer.verdict is Verdict.NO, answer.works) == (bool(told), not told)
    assert answer.reason.startswith(told)


def test_a_small_map_that_is_refused_too_says_nothing_of_locked_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "read_memlock", lambda: Limit(65536, 65536))

    answer = FeatureProbes(ALLOWED, FakeKernel(refuse=errno.EPERM)).locked_memory()

    assert answer.verdict is Verdict.UNKNOWN
    assert "MEMLOCK" not in answer.reason


@pytest.mark.parametrize("odd", [errno.EMFILE, errno.ENOMEM, errno.EIO, errno.E2BIG])
def test_any_other_error_is_could_not_tell(odd: int) -> None:
    answers = ask_all(FeatureProbes(ALLOWED, FakeKernel(odd=odd)))
    answers.pop("perf_events")  # not a bpf() call
    assert {answer.verdict for answer in answers.values() if answer.errno == odd} == {
        Verdict.UNKNOWN
    }


def test_perf_events_refused_with_the_capability_are_the_paranoid_setting() -> None:
    answer = FeatureProbes(ALLOWED, FakeKernel(refuse=errno.EPERM)).perf_events()
    assert answer.verdict is Verdict.NO
    assert "perf_event_paranoid" in answer.reason


class NoCalls(BpfCall):
    def call(self, command: int, attr: bytes) -> int:
        raise UnsupportedError("call bpf: this Python has no ctypes")

    def perf_event(self) -> int:
        raise UnsupportedError("call perf_event_open: this Python has no ctypes")


def test_an_interpreter_without_ctypes_is_could_not_tell() -> None:
    answers = ask_all(FeatureProbes(ALLOWED, NoCalls()))
    assert {answer.verdict for answer in answers.values()} == {Verdict.UNKNOWN}
    assert {answer.reason for answer in answers.values()} >= {"call bpf: this Python has no ctypes"}


def test_an_unknown_architecture_has_no_call_numbers() -> None:
    assert call_numbers("pdp11") is None
    assert call_numbers("aarch64") == call_numbers("riscv64")


def test_instructions_are_eight_bytes_each() -> None:
    assert len(Instruction.return_zero()) == 16
    assert len(Instruction.read_kernel()) == 56
