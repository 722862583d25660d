"""Functions and hooks of the kernel: kprobes, fentry, fexit, fmod_ret, LSM; exact, and said."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.nobody import as_nobody
from harness.objects import compile_object
from harness.probing import open_descriptors, probing
from harness.tiers import Require
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.errors import (
    AttachError,
    KernelTraceError,
    LoadError,
    PrivilegeError,
    UnsupportedError,
)
from kerneltrace_core.kernel.features import FeatureProbes
from kerneltrace_core.kernel.privileges import read_privileges
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.session.links import Link
from kerneltrace_core.session.load_refusals import explain_load
from kerneltrace_core.session.prepare import prepare
from kerneltrace_core.session.probes import (
    Fentry,
    Fexit,
    FmodRet,
    Kprobe,
    Kretprobe,
    Lsm,
    Probe,
    Tracepoint,
)
from kerneltrace_core.session.sections import BySection

pytestmark = pytest.mark.kernel

BYTES = 7
# Each with the counters of its hits and of the bytes that it saw.
READS: dict[str, tuple[Probe, str]] = {
    "kprobe": (Kprobe("vfs_read"), "kprobe"),
    "kretprobe": (Kretprobe("vfs_read"), "kretprobe"),
    # Of these libbpf reads the section.
    "kprobe_multi": (
        BySection("kprobe.multi/vfs_read", program="on_kprobe_multi"),
        "kprobe_multi",
    ),
    "kretprobe_multi": (
        BySection("kretprobe.multi/vfs_read", program="on_kretprobe_multi"),
        "kretprobe_multi",
    ),
    "fentry": (Fentry("vfs_read"), "fentry"),
    "fexit": (Fexit("vfs_read"), "fexit"),
}
NEEDS = {"kretprobe": "kprobe", "kretprobe_multi": "kprobe_multi", "fexit": "fentry"}


def lacks(feature: str) -> Support:
    """Turn a probe's answer over, for tests of what is said where it is missing."""
    has = getattr(FeatureProbes(read_privileges()), feature)().works
    return Support.no(f"this kernel has {feature}") if has else Support.yes()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(bytes(BYTES + 1))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def read(fd: int, times: int) -> None:
    for _ in range(times):
        assert len(os.pread(fd, BYTES, 0)) == BYTES


@pytest.mark.parametrize("kind", READS)
def test_23_reads_are_23_hits_with_their_bytes(require: Require, file: int, kind: str) -> None:
    require_kind(require, kind)
    spec, counter = READS[kind]
    with probing("functions", spec) as probes:
        read(file, 23)
        assert probes[f"{counter}_hits"] == 23
        assert probes[f"{counter}_bytes"] == 23 * BYTES


def kprobe_multi() -> Support:
    """Attach a program to several functions at once, as far as this kernel has that."""
    try:
        with probing("functions", READS["kprobe_multi"][0]):
            return Support.yes()
    except KernelTraceError as error:
        name = errno.errorcode.get(error.errno or 0, "no errno")
        return Support.no(f"{name}: this kernel attaches no kprobe.multi program", "", error.errno)


def require_kind(require: Require, kind: str) -> None:
    """Ask for what attaching in such a way needs."""
    feature = NEEDS.get(kind, kind)
    require(feature, probe=kprobe_multi if feature == "kprobe_multi" else None)


def attaches_again() -> Support:
    """Tell whether one load of an fentry program may be attached more than once."""
    with probing("functions", Fentry("vfs_read")) as probes:
        (link,) = probes.links
        link.detach()
        try:
            link.attach()
        except UnsupportedError as error:
            told = str(error)
            assert "this kernel attaches such a program only once" in told
            return Support.no(told, "Linux 5.13 or later", error.errno)
    return Support.yes()


@pytest.mark.parametrize("kind", READS)
def test_a_link_counts_while_it_is_attached_and_leaves_no_descriptor(
    require: Require, file: int, kind: str
) -> None:
    require_kind(require, kind)
    if NEEDS.get(kind, kind) == "fentry":
        require("fentry programs that are attached again", probe=attaches_again)
    spec, counter = READS[kind]
    with probing("functions", spec, attach=False) as probes:
        (link,) = probes.links
        before = open_descriptors()
        for _ in range(3):
            link.attach()
            read(file, 5)
            link.detach()
            read(file, 5)
        assert probes[f"{counter}_hits"] == 3 * 5
        assert open_descriptors() == before


def test_a_kprobe_behind_the_first_instruction_hits_too(require: Require, file: int) -> None:
    require("kprobe")
    with probing("functions", Kprobe("vfs_read"), attach=False) as probes:
        refusals = []
        for offset in range(1, 32):
            link = Link(probes.object, "on_kprobe", Kprobe("vfs_read", offset))
            try:
                link.attach()
            except AttachError as error:
                refusals.append((str(error), f"no instruction at offset {offset:#x} of it"))
                continue
            read(file, 23)
            link.close()
            break
        assert [told for told, wanted in refusals if wanted not in told] == []
        assert probes["kprobe_hits"] == 23


def test_an_unknown_function_comes_with_the_one_that_was_meant(require: Require) -> None:
    require("kprobe")
    with (
        pytest.raises(AttachError) as caught,
        probing("functions", Kprobe("vfs_raed", program="on_kprobe")),
    ):
        pass
    told = str(caught.value)
    assert told.startswith("attach kprobe vfs_raed to program on_kprobe (SEC(")
    assert "no such function, or the compiler has inlined it (did you mean vfs_read" in told


def test_a_kernel_without_kprobes_says_so(require: Require) -> None:
    require("no kprobes", probe=lambda: lacks("kprobe"))
    with pytest.raises(UnsupportedError) as caught, probing("functions", Kprobe("vfs_read")):
        pass
    assert "CONFIG_KPROBES" in str(caught.value)
    assert "take a BtfTracepoint" in str(caught.value)


def test_an_unknown_function_of_fentry_is_said_before_load() -> None:
    spec = Fentry("vfs_raed", program="on_fentry")
    with pytest.raises(AttachError) as caught, probing("functions", spec):
        pass
    assert "ESRCH: the kernel has no such function" in str(caught.value)
    assert "did you mean vfs_read" in str(caught.value)


def test_nobody_is_told_of_an_unknown_function_that_modules_were_not_searched() -> None:
    def refused() -> str:
        spec = Fentry("vfs_raed", program="on_fentry")
        with pytest.raises(AttachError) as caught, probing("functions", spec):
            pass
        return str(caught.value)

    told = as_nobody(refused)

    assert "ESRCH: the kernel has no such function, or the compiler has inlined it" in told
    assert "did you mean vfs_read" in told
    # Before, no module has types.
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 11):
        assert "(its modules' types were not searched: that needs CAP_SYS_ADMIN)" in told
        assert told.endswith("for a target in a module, give it CAP_SYS_ADMIN)")


def test_a_program_has_one_function_and_says_so() -> None:
    data = compile_object("functions").read_bytes()
    uses = [("on_fentry", Fentry("vfs_read")), ("on_fentry", Fentry("vfs_write"))]
    with BpfObject(data, "functions") as opened, pytest.raises(AttachError) as caught:
        prepare(opened, uses)
    assert "it is for vfs_read already (write a second program" in str(caught.value)


def test_a_program_loaded_for_one_function_is_not_attached_to_another(
    require: Require,
) -> None:
    require("fentry")
    with probing("functions", Fentry("vfs_read")) as probes:
        link = Link(probes.object, "on_fentry", Fentry("vfs_write"))
        with pytest.raises(AttachError, match="the program was loaded for vfs_read"):
            link.attach()


@pytest.mark.parametrize(
    ("program", "spec"),
    [
        ("on_fentry", Kprobe("vfs_read")),
        ("on_kprobe", Fentry("vfs_read")),
        ("on_fexit", Fentry("vfs_read")),
        ("on_kprobe", Tracepoint("sched", "sched_switch")),
        ("on_lsm", FmodRet("security_file_open")),
    ],
)
def test_a_program_of_another_type_is_refused_before_any_system_call(
    program: str, spec: Probe
) -> None:
    data = compile_object("functions").read_bytes()
    with BpfObject(data, "functions") as opened, pytest.raises(AttachError) as caught:
        Link(opened, program, spec).attach()
    assert f"attach {spec} to program {program} (SEC(" in str(caught.value)
    assert "EINVAL: it" in str(caught.value)


def test_fmod_ret_changes_what_the_program_sees_until_it_is_detached(
    require: Require, tmp_path: Path
) -> None:
    require("fmod_ret")
    (tmp_path / "file").touch()
    with probing("functions", FmodRet("security_file_open")) as probes:
        probes["denied"] = 1
        try:
            with pytest.raises(PermissionError):
                os.open(tmp_path / "file", os.O_RDONLY)
        finally:
            probes["denied"] = 0
        assert probes["fmod_ret_hits"] == 1
        probes["denied"] = 1
        probes.links[0].detach()
        os.close(os.open(tmp_path / "file", os.O_RDONLY))


def test_an_lsm_program_denies_until_it_is_detached(require: Require, tmp_path: Path) -> None:
    require("lsm")
    (tmp_path / "file").touch()
    with probing("functions", Lsm("file_open")) as probes:
        probes["denied"] = 1
        try:
            with pytest.raises(PermissionError):
                os.open(tmp_path / "file", os.O_RDONLY)
        finally:
            probes["denied"] = 0
        assert probes["lsm_hits"] == 1
        probes["denied"] = 1
        probes.links[0].detach()
        os.close(os.open(tmp_path / "file", os.O_RDONLY))


def loading_error(*programs: str) -> KernelTraceError:
    """Load these alone, which must fail; return what that means."""
    data = compile_object("functions").read_bytes()
    with BpfObject(data, "functions") as opened:
        opened.select(set(programs))
        with pytest.raises((LoadError, PrivilegeError)) as caught:
            opened.load()
        return explain_load(opened, caught.value)


@pytest.mark.parametrize(
    ("program", "kind"), [("on_fexit", "fexit"), ("on_fmod_ret", "fmod_ret"), ("on_lsm", "LSM")]
)
def test_a_kernel_that_lets_nobody_change_its_text_says_so(
    require: Require, program: str, kind: str
) -> None:
    require("no fentry", probe=lambda: lacks("fentry"))
    error = loading_error(program)
    assert isinstance(error, PrivilegeError)
    assert f"load program {program} (SEC(" in str(error)
    assert "EPERM: this kernel lets nobody change its text" in str(error)
    assert f"as {kind} programs do (take a BtfTracepoint" in str(error)


def test_nobody_with_two_capabilities_has_fentry_fexit_and_lsm(
    require: Require, file: int, tmp_path: Path
) -> None:
    require("fentry", "lsm")

    def count() -> tuple[int, int, int]:
        # Attaching an LSM program reads a file of its own: the counters of reads begin after it.
        specs = Lsm("file_open"), Fentry("vfs_read"), Fexit("vfs_read")
        with probing("functions", *specs) as probes:
            read(file, 23)
            hits, read_bytes = probes["fentry_hits"], probes["fexit_bytes"]
            probes["denied"] = 1
            denied = 0
            try:
                os.open("/dev/null", os.O_RDONLY)
            except PermissionError:
                denied = 1
            probes["denied"] = 0
            return hits, read_bytes, denied

    assert as_nobody(count) == (23, 23 * BYTES, 1)


def test_nobody_without_perfmon_is_told_so() -> None:
    def refused() -> str:
        return str(loading_error("on_kprobe"))

    told = as_nobody(refused, capabilities=(39,))

    assert told.startswith('load program on_kprobe (SEC("kprobe")) of object functions: ')
    assert "CAP_PERFMON missing (give it CAP_PERFMON)" in told


def test_nobody_without_capabilities_is_told_which_the_whole_object_needs() -> None:
    told = as_nobody(lambda: str(loading_error("on_kprobe")), capabilities=())

    assert told.startswith("load object functions: EPERM: ")
    assert "CAP_BPF, CAP_PERFMON missing (give it CAP_BPF, CAP_PERFMON)" in told
