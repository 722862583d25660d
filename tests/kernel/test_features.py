"""Feature probes and the doctor on the real kernel, with three sets of privileges."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kerneltrace_core
from kerneltrace_core.doctor.groups import probe_groups
from kerneltrace_core.kernel import btf
from kerneltrace_core.kernel.capabilities import NEEDED
from kerneltrace_core.kernel.features import FeatureProbes
from kerneltrace_core.kernel.privileges import Privileges, read_privileges
from kerneltrace_core.kernel.support import Support, Verdict

pytestmark = pytest.mark.kernel

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
TWO = "+bpf,+perfmon"
EXPLAINED = (Verdict.YES, Verdict.NO)


def privileged() -> Privileges:
    held = read_privileges()
    if held.capabilities is None or held.capabilities.missing(NEEDED):
        pytest.skip("capabilities: no (CAP_BPF and CAP_PERFMON)")
    return held


@pytest.fixture
def probes() -> FeatureProbes:
    return FeatureProbes(privileged())


@pytest.fixture(scope="module")
def vmlinux() -> bytes:
    return btf.read_vmlinux()


@pytest.fixture(scope="module")
def nobodys_python() -> Iterator[list[str]]:
    """Give a command that starts Python with this package for a user who may read nothing else."""
    source = Path(kerneltrace_core.__file__).parent
    # Not tmp_path: only its owner may enter that.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        copy = directory / source.name
        copy.mkdir(mode=0o755)
        shutil.copy(source / "__init__.py", copy)
        for file in source.rglob("*.py"):
            target = copy / file.relative_to(source)
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        for interpreter in (sys.executable, "/usr/bin/python3"):
            command = ["env", f"PYTHONPATH={directory}", interpreter, "-B"]
            check = [*NOBODY, "--", *command, "-c", "import kerneltrace_core.kernel.features"]
            if subprocess.run(check, capture_output=True, check=False).returncode == 0:
                yield command
                return
        pytest.skip("interpreter: no (none that uid 65534 may execute)")


def run_doctor(command: list[str], prefix: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [*prefix, *command, "-m", "kerneltrace_core.doctor", "--json"],
        capture_output=True, text=True, check=False, cwd="/", timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def verdicts(findings: list[dict[str, Any]]) -> dict[str, str]:
    return {finding["name"]: finding["verdict"] for finding in findings}


def ask_all(probes: FeatureProbes) -> dict[str, Support]:
    return {
        "bpf_call": probes.bpf_call(),
        "mmapable_array": probes.mmapable_array(),
        "shared_maps": probes.shared_maps(),
        "task_storage": probes.task_storage(),
        "ring_buffer": probes.ring_buffer(),
        "region_memory": probes.region_memory(1 << 20),
        "kernel_reads": probes.kernel_reads(),
        "thread_registration": probes.thread_registration(),
        "perf_events": probes.perf_events(),
        "uprobe_multi": probes.uprobe_multi(),
    }


def test_every_probe_has_an_answer_and_every_no_has_its_evidence(probes: FeatureProbes) -> None:
    answers = ask_all(probes)
    assert {name: one for name, one in answers.items() if one.verdict not in EXPLAINED} == {}
    for name, answer in answers.items():
        if answer.verdict is Verdict.NO:
            assert answer.errno, name
            assert answer.remedy, name
    assert answers["mmapable_array"].works
    assert answers["shared_maps"].works


def test_probes_leave_no_descriptor_behind(probes: FeatureProbes, vmlinux: bytes) -> None:
    ids = btf.tracepoint_type_ids(vmlinux, ["sched_switch"])
    ask_all(probes)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths
    for _ in range(3):
        ask_all(probes)
        probes.tracepoint(ids["sched_switch"])
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_the_scheduler_tracepoints_load(probes: FeatureProbes, vmlinux: bytes) -> None:
    sched = probe_groups()[0]
    ids = btf.tracepoint_type_ids(vmlinux, sched.required)
    assert set(ids) == set(sched.required)
    answers = {name: probes.tracepoint(ids[name]) for name in sched.required}
    assert {name: one for name, one in answers.items() if not one.works} == {}


def test_a_type_that_is_no_tracepoint_is_unknown_with_the_verifiers_words(
    probes: FeatureProbes,
) -> None:
    answer = probes.tracepoint(1)
    assert answer.verdict is Verdict.UNKNOWN
    assert answer.errno == errno.EINVAL
    assert "attach_btf_id 1 is not a typedef" in answer.reason


def test_btf_has_exactly_the_tracepoints_whose_string_it_has(vmlinux: bytes) -> None:
    names = [name for group in probe_groups() for name in group.required + group.optional]
    ids = btf.tracepoint_type_ids(vmlinux, [*names, "no_such_tracepoint"])
    assert set(ids) == {name for name in names if btf.has_tracepoint(vmlinux, name)}


def test_exhausted_descriptors_are_could_not_tell() -> None:
    privileged()
    code = (
        "import resource\n"
        "from kerneltrace_core.kernel.features import FeatureProbes\n"
        "from kerneltrace_core.kernel.privileges import read_privileges\n"
        "probes = FeatureProbes(read_privileges())\n"
        "assert probes.mmapable_array().works\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "answer = probes.mmapable_array()\n"
        "print(answer.verdict.value, answer.errno)\n"
    )
    done = run_python(code)
    assert done == f"unknown {errno.EMFILE}"


def test_a_real_seccomp_filter_that_refuses_bpf_is_named() -> None:
    held = privileged()
    if held.seccomp.mode != "none" or platform.machine() != "x86_64":
        pytest.skip("seccomp: no (a filter is on already, or not x86-64)")
    code = (
        "import ctypes, struct\n"
        "from kerneltrace_core.kernel.features import FeatureProbes\n"
        "from kerneltrace_core.kernel.privileges import read_privileges\n"
        "filter = b''.join(struct.pack('=HBBI', *one) for one in (\n"
        "    (0x20, 0, 0, 0), (0x15, 0, 1, 321), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)))\n"
        "code = ctypes.create_string_buffer(filter, len(filter))\n"
        "program = struct.pack('HxxxxxxQ', 4, ctypes.addressof(code))\n"
        "buffer = ctypes.create_string_buffer(program, len(program))\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.prctl(38, 1, 0, 0, 0) == 0\n"
        "assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(buffer)), 0, 0) == 0\n"
        "answer = FeatureProbes(read_privileges()).bpf_call()\n"
        "print(answer.verdict.value, answer.reason)\n"
    )
    assert run_python(code) == "no EPERM: a seccomp filter refuses bpf()"


def run_python(code: str) -> str:
    source = str(Path(kerneltrace_core.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def needs_root() -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("setpriv as root: no")


@pytest.mark.needs("capability:cap_setuid")
def test_two_capabilities_do_for_nobody_what_all_do_for_root(nobodys_python: list[str]) -> None:
    needs_root()
    privileged()
    _, root = run_doctor(nobodys_python)
    prefix = (*NOBODY, f"--inh-caps={TWO}", f"--ambient-caps={TWO}", "--")
    _, nobody = run_doctor(nobodys_python, prefix)
    assert nobody["system"]["uid"] == 65534
    assert nobody["system"]["missing_capabilities"] == []
    assert verdicts(nobody["groups"]) == verdicts(root["groups"])
    assert verdicts(root["groups"])["sched"] == "yes"
    theirs, ours = verdicts(nobody["needs"]), verdicts(root["needs"])
    # Before 5.11 only root may raise the limit that maps are charged to.
    theirs.pop("memory lock")
    ours.pop("memory lock")
    assert theirs == ours


@pytest.mark.needs("capability:cap_setuid")
def test_nobody_without_capabilities_is_told_which_and_falls_back(
    nobodys_python: list[str],
) -> None:
    needs_root()
    status, document = run_doctor(nobodys_python, (*NOBODY, "--"))
    assert status == document["exit_status"] == 1
    assert document["status"] == "missing"
    assert document["system"]["missing_capabilities"] == ["cap_bpf", "cap_perfmon"]
    assert document["backend"]["auto"] == "procfs"
    assert set(verdicts(document["groups"]).values()) == {"no"}
    sched = document["groups"][0]
    assert sched["fix"] == "give it CAP_BPF, CAP_PERFMON"
    assert sched["errno"] == errno.EPERM
    assert {part["errno"] for part in sched["tracepoints"]} == {errno.EPERM}


@pytest.mark.any_kernel
@pytest.mark.needs("capability:cap_setuid")
def test_the_exit_status_of_the_text_is_that_of_the_json(nobodys_python: list[str]) -> None:
    status, document = run_doctor(nobodys_python)
    done = subprocess.run(
        [*nobodys_python, "-m", "kerneltrace_core.doctor"],
        capture_output=True, text=True, check=False, cwd="/", timeout=60,
    )  # fmt: skip
    assert done.returncode == status == document["exit_status"]
    assert f"Linux {platform.release()}" in done.stdout.splitlines()[0]
    assert f'backend="auto" chooses {document["backend"]["auto"]}' in done.stdout
