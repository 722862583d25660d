from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kerneltrace_core
from kerneltrace_core.doctor import __main__ as command
from kerneltrace_core.doctor import examine as examination
from kerneltrace_core.doctor.diagnosis import Diagnosis, System
from kerneltrace_core.doctor.document import as_document
from kerneltrace_core.doctor.examine import examine, read_btf
from kerneltrace_core.doctor.groups import probe_groups
from kerneltrace_core.doctor.surroundings import (
    extension_fact,
    objects_fact,
    procfs_fact,
    tracefs_fact,
)
from kerneltrace_core.doctor.text import as_text
from kerneltrace_core.kernel import btf
from kerneltrace_core.kernel.capabilities import CapabilitySets
from kerneltrace_core.kernel.features import FeatureProbes
from kerneltrace_core.kernel.lockdown import Lockdown
from kerneltrace_core.kernel.privileges import Privileges
from kerneltrace_core.kernel.seccomp import Seccomp
from kerneltrace_core.kernel.support import Support, Verdict
from unit.fake_kernel import KPROBE, SYSCALL, TASK_STORAGE, FakeKernel, btf_with

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent / "golden"
BOTH = frozenset({"cap_bpf", "cap_perfmon"})
NONE = CapabilitySets()
TWO = CapabilitySets(effective=BOTH, permitted=BOTH, bounding=BOTH)
ALL_TRACEPOINTS = [name for group in probe_groups() for name in group.required + group.optional]
NO_SOCKETS = [name for name in ALL_TRACEPOINTS if not name.startswith("sock_")]


def privileges(capabilities: CapabilitySets) -> Privileges:
    return Privileges(capabilities, True, Lockdown("none"), Seccomp("none", 0, False))


@pytest.fixture(autouse=True)
def same_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Play the facts of the machine that the fakes below do not play."""

    def system(held: Privileges) -> System:
        assert held.capabilities is not None
        missing = held.capabilities.missing(("cap_bpf", "cap_perfmon"))
        return System("6.99.0", "x86_64", "3.11.0", "python3", 65534, missing, bool(missing))

    monkeypatch.setattr(examination, "_system", system)
    monkeypatch.setattr(examination, "read_config", dict)
    monkeypatch.setattr(examination, "extension_fact", lambda name: Support.yes())
    monkeypatch.setattr(examination, "objects_fact", Support.yes)
    monkeypatch.setattr(examination, "tracefs_fact", lambda: Support.yes("/sys/kernel/tracing"))
    monkeypatch.setattr(examination, "memlock_fact", lambda: Support.yes("8 MiB, hard 8 MiB"))
    monkeypatch.setattr(examination, "procfs_fact", Support.yes)
    monkeypatch.setattr(btf, "preempts_programs", lambda _path: False)
    monkeypatch.setattr(examination, "kernel_side_fact", lambda: Support.yes("own copy"))
    monkeypatch.setattr(examination, "pins_fact", lambda: Support.yes("none"))


def diagnose(
    tmp_path: Path,
    kernel: FakeKernel | None = None,
    capabilities: CapabilitySets = TWO,
    tracepoints: list[str] | None = None,
) -> Diagnosis:
    path = tmp_path / "vmlinux"
    path.write_bytes(btf_with(ALL_TRACEPOINTS if tracepoints is None else tracepoints))
    probes = FeatureProbes(privileges(capabilities), kernel or FakeKernel())
    return examine(probes, btf_path=str(path))


def finding(diagnosis: Diagnosis, name: str) -> Support:
    for one in diagnosis.groups + diagnosis.needs + diagnosis.information:
        if one.name == name:
            return one.support
    raise KeyError(name)


def old_kernel() -> FakeKernel:
    return FakeKernel(without_maps=[TASK_STORAGE], without_programs=[SYSCALL, KPROBE])


def test_a_kernel_that_has_all_gives_status_0_and_the_bpf_backend(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path)
    assert diagnosis.exit_status == 0
    assert (diagnosis.backend.name, diagnosis.backend.certain) == ("bpf", True)
    assert diagnosis.backend.reason == ""


@pytest.mark.parametrize(
    ("preempts", "words"), [(True, "they are loaded twice"), (False, "programs keep their CPU")]
)
def test_it_says_whether_programs_are_loaded_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preempts: bool, words: str
) -> None:
    monkeypatch.setattr(btf, "preempts_programs", lambda _path: preempts)
    assert finding(diagnose(tmp_path), "preemption").reason.endswith(words)


def test_without_capabilities_status_1_procfs_and_how_to_give_them(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, FakeKernel(refuse=errno.EPERM), NONE)
    assert diagnosis.exit_status == 1
    assert diagnosis.backend.name == "procfs"
    report = as_text(diagnosis)
    for way in ("AmbientCapabilities=CAP_BPF CAP_PERFMON", "--cap-add BPF --cap-add PERFMON",
                "add: [BPF, PERFMON]", "setcap cap_bpf,cap_perfmon=ep", "setpriv"):  # fmt: skip
        assert way in report


def test_a_kernel_without_socket_tracepoints_loses_nothing_but_says_what_it_costs(
    tmp_path: Path,
) -> None:
    diagnosis = diagnose(tmp_path, tracepoints=NO_SOCKETS)
    assert diagnosis.exit_status == 0
    assert "without sock_send_length" in finding(diagnosis, "syscalls").reason
    assert "need the group syscalls" in finding(diagnosis, "net").reason
    assert (diagnosis.backend.name, diagnosis.backend.reason) == ("bpf", "")


def test_a_group_without_a_tracepoint_that_it_needs_is_lost_and_the_rest_stays(
    tmp_path: Path,
) -> None:
    points = [name for name in ALL_TRACEPOINTS if not name.startswith("page_fault")]
    diagnosis = diagnose(tmp_path, tracepoints=points)
    assert diagnosis.exit_status == 1
    assert "leave the group off" in finding(diagnosis, "faults").remedy
    assert (diagnosis.backend.name, diagnosis.backend.reason) == ("bpf", "without faults")


def test_a_kernel_too_old_for_task_storage_falls_back_to_procfs(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, old_kernel(), tracepoints=NO_SOCKETS)
    assert diagnosis.backend.name == "procfs"
    assert 'SEC("syscall")' in diagnosis.backend.reason


def test_an_odd_answer_is_status_2_and_the_backend_is_not_certain(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, FakeKernel(refuse_programs=errno.EIO))
    assert diagnosis.exit_status == 2
    assert (diagnosis.backend.name, diagnosis.backend.certain) == ("bpf", False)


def test_a_missing_extension_is_status_1_and_procfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        examination, "extension_fact", lambda name: Support.no("not built", "build it")
    )
    diagnosis = diagnose(tmp_path)
    assert (diagnosis.exit_status, diagnosis.backend.name) == (1, "procfs")
    assert diagnosis.backend.reason == "extension: not built"


def test_btf_without_any_tracepoint_names_the_kernel_option(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, tracepoints=[])
    assert finding(diagnosis, "sched").remedy == "kernel option CONFIG_BPF_EVENTS"


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (None, "CONFIG_DEBUG_INFO_BTF=y"),
        ({"CONFIG_DEBUG_INFO_BTF": "n"}, "CONFIG_DEBUG_INFO_BTF=y"),
        ({"CONFIG_DEBUG_INFO_BTF": "y"}, "mount sysfs"),
    ],
)
def test_missing_btf_is_the_kernels_option_or_a_missing_mount(
    tmp_path: Path, config: dict[str, str] | None, remedy: str
) -> None:
    answer, blob = read_btf(str(tmp_path / "missing"), config)
    assert blob is None
    assert answer.verdict is Verdict.NO
    assert remedy in answer.remedy


def test_missing_btf_fails_every_group_with_the_same_fix(tmp_path: Path) -> None:
    diagnosis = examine(
        FeatureProbes(privileges(TWO), FakeKernel()), btf_path=str(tmp_path / "missing")
    )
    assert diagnosis.exit_status == 1
    assert len({group.support for group in diagnosis.groups}) == 1
    assert "CONFIG_DEBUG_INFO_BTF" in diagnosis.groups[0].support.remedy


def test_rubbish_for_btf_is_could_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"rubbish")
    diagnosis = examine(FeatureProbes(privileges(TWO), FakeKernel()), btf_path=str(path))
    assert diagnosis.exit_status == 2


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("all", {}),
        ("no-capabilities", {"kernel": FakeKernel(refuse=errno.EPERM), "capabilities": NONE}),
        ("old-kernel", {"kernel": old_kernel(), "tracepoints": NO_SOCKETS}),
        ("odd", {"kernel": FakeKernel(refuse_programs=errno.EIO)}),
    ],
)
def test_the_report_reads_as_recorded(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    report = as_text(diagnose(tmp_path, **arguments)) + "\n"
    path = GOLDEN / f"doctor-{name}.txt"
    if os.environ.get("KERNELTRACE_RECORD"):
        path.write_text(report)
    assert report == path.read_text()


def test_every_no_in_the_report_has_its_fix_on_the_next_line(tmp_path: Path) -> None:
    report = as_text(diagnose(tmp_path, FakeKernel(refuse=errno.EPERM), NONE)).splitlines()
    refused = [number for number, line in enumerate(report) if line[22:24] in ("NO", "no")]
    assert len(refused) > 10
    assert all(report[number + 1].strip().startswith("fix:") for number in refused)


def test_the_json_has_the_keys_that_its_documentation_names(tmp_path: Path) -> None:
    document = json.loads(json.dumps(as_document(diagnose(tmp_path))))
    assert list(document) == [
        "format", "status", "exit_status", "backend", "system", "groups", "needs", "information",
    ]  # fmt: skip
    assert list(document["backend"]) == ["auto", "certain", "reason"]
    assert [group["name"] for group in document["groups"]] == [
        "sched", "syscalls", "block", "net", "faults",
    ]  # fmt: skip
    one = document["groups"][1]
    keys = ["name", "verdict", "reason", "fix", "errno", "required", "tracepoints"]
    assert list(one) == keys
    assert [part["name"] for part in one["tracepoints"]] == [
        "sys_enter", "sys_exit", "sock_send_length", "sock_recv_length",
    ]  # fmt: skip
    assert [part["required"] for part in one["tracepoints"]] == [True, True, False, False]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_it_says_linux_only_and_exits_1(platform: str) -> None:
    out = io.StringIO()
    assert command.main([], out=out, platform=platform) == 1
    assert out.getvalue() == f"kerneltrace doctor: Linux only (this is {platform})\n"
    out = io.StringIO()
    assert command.main(["--json"], out=out, platform=platform) == 1
    assert json.loads(out.getvalue())["backend"]["auto"] is None


def test_the_command_prints_what_it_found_and_returns_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagnosis = diagnose(tmp_path, FakeKernel(refuse=errno.EPERM), NONE)
    monkeypatch.setattr(command, "examine", lambda: diagnosis)
    out = io.StringIO()
    assert command.main(["--json"], out=out, platform="linux") == 1
    assert json.loads(out.getvalue()) == as_document(diagnosis)
    out = io.StringIO()
    assert command.main([], out=out, platform="linux") == 1
    assert out.getvalue() == as_text(diagnosis) + "\n"


def test_the_doctor_runs_with_the_standard_library_alone() -> None:
    source = str(Path(kerneltrace_core.__file__).parents[1])
    code = (
        f"import sys; sys.path.insert(0, {source!r})\n"
        "from kerneltrace_core.doctor.__main__ import main; sys.exit(main(['--json']))"
    )
    # -S: no site-packages, so an import of anything from there would fail.
    done = subprocess.run(
        [sys.executable, "-B", "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["exit_status"] == done.returncode, done.stderr


def test_an_extension_that_is_not_there_says_how_to_build_it() -> None:
    answer = extension_fact("no_such_extension")
    assert answer.verdict is Verdict.NO
    assert "pip install" in answer.remedy


def test_tracefs_is_readable_or_not_mounted(tmp_path: Path) -> None:
    assert "not mounted" in tracefs_fact((str(tmp_path),)).reason
    (tmp_path / "events" / "sched").mkdir(parents=True)
    assert tracefs_fact((str(tmp_path),)) == Support.yes(str(tmp_path))


def test_the_files_of_the_procfs_backend_are_named_when_they_are_missing(tmp_path: Path) -> None:
    (tmp_path / "io").write_text("")
    answer = procfs_fact(str(tmp_path))
    assert answer.verdict is Verdict.NO
    assert "schedstat" in answer.reason
    assert "io," not in answer.reason


def test_probe_objects_are_there_missing_or_rubbish(tmp_path: Path) -> None:
    assert "not installed" in objects_fact(tmp_path).reason
    (tmp_path / "requests.bpf.o").write_bytes(b"rubbish")
    assert "not an object file" in objects_fact(tmp_path).reason
    (tmp_path / "requests.bpf.o").write_bytes(b"\x7fELF and more")
    assert objects_fact(tmp_path).works
