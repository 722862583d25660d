"""Uprobes count the calls of one process exactly, by uprobe_multi links and through perf events."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.libraries import compile_library
from harness.nobody import as_nobody
from harness.probing import either_uprobe, open_descriptors, probing
from harness.tiers import Require
from kerneltrace_core.btf.elf import Elf
from kerneltrace_core.errors import AttachError, PrivilegeError
from kerneltrace_core.session import prepare, uprobes
from kerneltrace_core.session.probes import Kprobe, Probe, Uprobe, Uretprobe
from kerneltrace_core.session.uprobes import UprobeWay

pytestmark = pytest.mark.kernel

PERF = UprobeWay(multi=False, by_process=True)


@pytest.fixture(params=["uprobe_multi_by_process", "uprobes"])
def way(request: pytest.FixtureRequest, require: Require, monkeypatch: pytest.MonkeyPatch) -> str:
    """Attach by uprobe_multi links, then through perf events; each where the kernel has it."""
    require(request.param)
    if request.param == "uprobes":
        monkeypatch.setattr(uprobes, "uprobe_way", lambda: PERF)
        monkeypatch.setattr(prepare, "uprobe_way", lambda: PERF)
    return str(request.param)


@pytest.fixture(scope="module")
def path() -> str:
    return str(compile_library("traced"))


@pytest.fixture(scope="module")
def traced(path: str) -> ctypes.CDLL:
    return ctypes.CDLL(path)


def symbol_value(path: str, name: str) -> int:
    elf = Elf.parse(Path(path).read_bytes())
    (value,) = {symbol.value for symbol in elf.symbols() if symbol.name == name}
    return elf.file_offset(value)


@pytest.mark.unprivileged
def test_23_calls_are_23_hits_with_their_arguments_and_results(
    way: str, path: str, traced: ctypes.CDLL
) -> None:
    with probing(
        "attach", Uprobe(path, "traced_twice", program="on_uprobe"), Uretprobe(path, "traced_twice")
    ) as probes:
        for value in range(23):
            assert traced.traced_twice(value) == 2 * value

        assert probes["uprobe_hits"] == probes["uretprobe_hits"] == 23
        assert probes["uprobe_sum"] == sum(range(23))
        assert probes["uretprobe_sum"] == 2 * sum(range(23))


def test_a_place_may_be_given_as_an_offset_in_the_file(
    way: str, path: str, traced: ctypes.CDLL
) -> None:
    spec = Uprobe(path, offset=symbol_value(path, "traced_twice"), program="on_uprobe")
    with probing("attach", spec) as probes:
        for _ in range(23):
            traced.traced_twice(5)
        assert (probes["uprobe_hits"], probes["uprobe_sum"]) == (23, 23 * 5)


def test_a_static_function_is_found_too(way: str, path: str, traced: ctypes.CDLL) -> None:
    with probing("attach", Uprobe(path, "traced_local", program="on_uprobe")) as probes:
        for _ in range(23):
            traced.traced_plus_one(1)
        assert probes["uprobe_hits"] == 23


def test_the_c_librarys_name_is_enough(way: str) -> None:
    with probing("attach", Uprobe("libc.so.6", "getppid", program="on_uprobe")) as probes:
        for _ in range(23):
            os.getppid()
        assert probes["uprobe_hits"] == 23


def test_of_a_versioned_symbol_the_default_version_is_probed(path: str, require: Require) -> None:
    require("uprobes of either kind", probe=either_uprobe)
    libc = ctypes.CDLL("libc.so.6")
    compiled = ctypes.create_string_buffer(256)
    assert libc.regcomp(compiled, b"b", 0) == 0
    with probing("attach", Uprobe("libc.so.6", "regexec", program="on_uprobe")) as probes:
        for _ in range(23):
            libc.regexec(compiled, b"abc", 0, None, 0)
        assert probes["uprobe_hits"] == 23


def make_child_call(traced: ctypes.CDLL, times: int) -> int:
    """Return the pid of a child that has called traced_twice and ended."""
    child = os.fork()
    if child == 0:
        for _ in range(times):
            traced.traced_twice(1)
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_with_a_pid_only_that_process_is_probed(way: str, path: str, traced: ctypes.CDLL) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        for _ in range(7):
            traced.traced_twice(1)
        os._exit(0)
    specs = [
        Uprobe(path, "traced_twice", pid=child, program="on_uprobe"),
        Uprobe(path, "traced_twice", pid=os.getpid(), program="on_other"),
    ]
    with probing("attach", *specs) as probes:
        for _ in range(23):
            traced.traced_twice(1)
        assert probes["uprobe_hits"] == 0
        assert probes["other_hits"] == 23
        probes["traced_tgid"] = child
        os.write(writing, b"x")
        os.waitpid(child, 0)
        assert probes["uprobe_hits"] == 7
        assert probes["other_hits"] == 23
    os.close(reading)
    os.close(writing)


def test_threads_of_the_process_are_probed_as_its_first_one_is(
    way: str, path: str, traced: ctypes.CDLL
) -> None:
    spec = Uprobe(path, "traced_twice", pid=os.getpid(), program="on_uprobe")
    with probing("attach", spec) as probes:
        thread = threading.Thread(target=lambda: [traced.traced_twice(1) for _ in range(23)])
        thread.start()
        thread.join()
        assert probes["uprobe_hits"] == 23


def test_a_process_that_starts_later_is_probed_without_a_pid(
    way: str, path: str, traced: ctypes.CDLL
) -> None:
    with probing("attach", Uprobe(path, "traced_twice", program="on_uprobe"), tgid=0) as probes:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(reading, 1)
            for _ in range(7):
                traced.traced_twice(1)
            os._exit(0)
        probes["traced_tgid"] = child
        os.write(writing, b"x")
        os.waitpid(child, 0)
        assert probes["uprobe_hits"] == 7
        os.close(reading)
        os.close(writing)


def test_a_link_counts_what_happens_while_it_is_attached_and_leaves_no_descriptor(
    way: str, path: str, traced: ctypes.CDLL
) -> None:
    with probing(
        "attach", Uprobe(path, "traced_twice", program="on_uprobe"), attach=False
    ) as probes:
        (link,) = probes.links
        before = open_descriptors()
        for _ in range(4):
            link.attach()
            traced.traced_twice(1)
            link.detach()
            traced.traced_twice(1)
        assert probes["uprobe_hits"] == 4
        assert open_descriptors() == before


def test_nobody_with_two_capabilities_probes_by_uprobe_multi(
    require: Require, path: str, traced: ctypes.CDLL
) -> None:
    require("uprobe_multi_by_process")

    def count() -> tuple[int, int, int]:
        uprobes.uprobe_way.cache_clear()
        specs = [
            Uprobe(path, "traced_twice", pid=os.getpid(), program="on_uprobe"),
            Uretprobe(path, "traced_twice", pid=os.getpid()),
        ]
        with probing("attach", *specs) as probes:
            for value in range(23):
                traced.traced_twice(value)
            return probes["uprobe_hits"], probes["uprobe_sum"], probes["uretprobe_sum"]

    assert as_nobody(count) == (23, sum(range(23)), 2 * sum(range(23)))


def test_nobody_is_told_what_uprobes_through_perf_need(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(prepare, "uprobe_way", lambda: PERF)

    def refused() -> str:
        spec = Uprobe(path, "traced_twice", program="on_uprobe")
        with pytest.raises(PrivilegeError) as caught, probing("attach", spec):
            pass
        return str(caught.value)

    told = as_nobody(refused)

    assert f"attach uprobe {path}:traced_twice to program on_uprobe" in told
    assert "CAP_SYS_ADMIN missing (give it CAP_SYS_ADMIN or Linux 6.6 or later" in told
    assert "(uprobe_multi links)" in told


def no_symbols(path: str, folder: Path) -> str:
    stripped = folder / "stripped.so"
    data = bytearray(Path(path).read_bytes())
    # Section headers begin where e_shoff says; without them there are no symbol tables.
    data[40:48] = bytes(8)
    data[58:64] = bytes(6)
    stripped.write_bytes(data)
    return str(stripped)


def test_what_cannot_be_probed_is_said(path: str, tmp_path: Path, require: Require) -> None:
    require("uprobes of either kind", probe=either_uprobe)
    stripped = no_symbols(path, tmp_path)
    text = tmp_path / "text"
    text.write_text("no ELF file")
    gone = make_child_call(ctypes.CDLL(path), 0)
    cases: list[tuple[Probe, str]] = [
        (Uprobe(path, "traced_twise"), "has no function traced_twise (did you mean traced_twice"),
        (Uprobe("/nowhere/lib.so", "f"), "ENOENT: there is no /nowhere/lib.so"),
        (Uprobe("libnowhere.so.7", "f"), "there is no libnowhere.so.7 among what is mapped"),
        (Uprobe(str(text), "f"), "not an ELF file"),
        (Uprobe(str(tmp_path), "f"), "it is not a file"),
        (Uprobe(stripped, "f"), "no symbols at all (it is stripped: give offset="),
        (Uprobe(path, "traced_twice", pid=gone), f"ESRCH: there is no process {gone}"),
        (Uprobe("libc.so.6", "memcpy"), "memcpy is chosen among variants"),
    ]
    with probing("attach", Uprobe(path, "traced_twice", program="on_uprobe")) as probes:
        for spec, told in cases:
            link = type(probes.links[0])(probes.object, "on_uprobe", spec)
            with pytest.raises(AttachError) as caught:
                link.attach()
            assert told in str(caught.value)
            assert str(caught.value).startswith(f"attach {spec} to program on_uprobe (SEC(")


def test_a_program_loaded_for_uprobes_is_no_kprobes_program(require: Require, path: str) -> None:
    require("uprobe_multi_by_process")
    with probing("attach", Uprobe(path, "traced_twice", program="on_uprobe")) as probes:
        link = type(probes.links[0])(probes.object, "on_uprobe", Kprobe("vfs_read"))
        with pytest.raises(AttachError, match="loaded for uprobe_multi links"):
            link.attach()


def test_a_binary_is_found_in_the_mount_namespace_of_the_process(
    way: str, require: Require, path: str, tmp_path: Path
) -> None:
    require("capability:cap_sys_admin")
    inside = tmp_path / "mounted"
    inside.mkdir()
    shutil.copy(path, tmp_path / "lib.so")
    script = (
        "import ctypes, sys\n"
        f"traced = ctypes.CDLL({str(inside / 'lib.so')!r})\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for _ in range(7): traced.traced_twice(1)\n"
        "print('done', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    command = f'mount --bind {tmp_path} {inside} && exec {sys.executable} -c "$0"'
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", command, script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert not (inside / "lib.so").exists()
        spec = Uprobe(str(inside / "lib.so"), "traced_twice", pid=child.pid, program="on_uprobe")
        with probing("attach", spec, tgid=child.pid) as probes:
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
            assert probes["uprobe_hits"] == 7
        child.communicate("\n")
