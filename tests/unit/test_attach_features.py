"""What the probes of attaching say of a kernel that lacks the one or the other."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kerneltrace_core.kernel import attach_features, btf
from kerneltrace_core.kernel.features import FeatureProbes
from kerneltrace_core.kernel.support import Support, Verdict
from unit.fake_kernel import KPROBE, FakeKernel
from unit.test_kernel_features import ALLOWED, assert_all_closed

pytestmark = pytest.mark.unit


def ask(kernel: FakeKernel, probe: str) -> Support:
    answer: Support = getattr(FeatureProbes(ALLOWED, kernel), probe)()
    assert_all_closed(kernel)
    return answer


@pytest.mark.parametrize(
    "probe", ["uprobe_multi_by_process", "tcx", "perf_links", "hardware_events"]
)
def test_a_kernel_that_has_it_answers_yes(probe: str) -> None:
    assert ask(FakeKernel(), probe).works


def test_uprobe_multi_links_that_filter_by_thread_are_a_no_with_the_fixed_versions() -> None:
    answer = ask(FakeKernel(filters_by_thread=True), "uprobe_multi_by_process")
    assert answer.verdict is Verdict.NO
    assert "filter by thread" in answer.reason
    assert answer.remedy == "Linux 6.10, or 6.6.33 or later"


def test_without_uprobe_multi_there_is_none_by_process() -> None:
    answer = ask(FakeKernel(without_programs=[KPROBE]), "uprobe_multi_by_process")
    assert answer.remedy == "Linux 6.6 or later"


def test_no_tcx_is_einval() -> None:
    assert ask(FakeKernel(tcx=False), "tcx") == Support.no(
        "EINVAL: this kernel has no tcx links", "Linux 6.6 or later", errno.EINVAL
    )


def test_no_perf_links_is_einval() -> None:
    answer = ask(FakeKernel(perf_links=False), "perf_links")
    assert answer.remedy == "Linux 5.15 or later"


def test_no_counters_of_the_processor_are_enoent() -> None:
    answer = ask(FakeKernel(hardware=False), "hardware_events")
    assert (answer.verdict, answer.errno) == (Verdict.NO, errno.ENOENT)
    assert "software event" in answer.remedy


def test_a_kernel_without_kprobes_is_known_by_sysfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_features, "_unit", lambda _name: None)
    answer = ask(FakeKernel(), "kprobe")
    assert answer.reason == "this kernel has no kprobes"
    assert "CONFIG_KPROBES" in answer.remedy
    assert ask(FakeKernel(), "uprobes").reason == "this kernel has no uprobes"


def test_kprobes_and_uprobes_are_opened_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_features, "_unit", lambda _name: 6)
    assert ask(FakeKernel(), "kprobe").works
    assert ask(FakeKernel(), "uprobes").works
    refused = ask(FakeKernel(refuse=errno.EACCES), "uprobes")
    assert refused.reason == "CAP_SYS_ADMIN missing"


def test_fentry_that_the_privileged_are_refused_is_the_kernels_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attach_features, "read_vmlinux", lambda: b"")
    monkeypatch.setattr(
        attach_features, "function_type_ids", lambda _data, names: dict.fromkeys(names, 7)
    )
    answer = ask(FakeKernel(refuse_programs=errno.EPERM), "fentry")
    assert answer.reason == "EPERM: this kernel lets nobody change its text"
    assert ask(FakeKernel(), "fentry").works
    assert ask(FakeKernel(), "fmod_ret").works


def test_lsm_needs_bpf_among_the_security_modules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modules = tmp_path / "lsm"
    monkeypatch.setattr(attach_features, "LSM_LIST", str(modules))
    monkeypatch.setattr(attach_features, "read_vmlinux", lambda: b"")
    monkeypatch.setattr(
        attach_features, "function_type_ids", lambda _data, names: dict.fromkeys(names, 7)
    )
    assert ask(FakeKernel(), "lsm").works
    modules.write_text("lockdown,capability,bpf")
    assert ask(FakeKernel(), "lsm").works
    modules.write_text("lockdown,capability")
    assert ask(FakeKernel(), "lsm").remedy == "boot with lsm=lockdown,capability,bpf"


def test_functions_that_btf_does_not_describe_are_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_features, "read_vmlinux", lambda: b"")
    monkeypatch.setattr(attach_features, "function_type_ids", lambda _data, _names: {})
    assert ask(FakeKernel(), "lsm").remedy == "CONFIG_BPF_LSM=y"

    def unreadable() -> bytes:
        raise FileNotFoundError(errno.ENOENT, "No such file", btf.VMLINUX)

    monkeypatch.setattr(attach_features, "read_vmlinux", unreadable)
    assert ask(FakeKernel(), "fentry").verdict is Verdict.UNKNOWN
