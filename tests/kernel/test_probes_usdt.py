"""Static tracepoints: hits, arguments and semaphores are exact, in this and in another process."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.libraries import compile_library
from harness.nobody import as_nobody
from harness.objects import compile_object
from harness.probing import Probing, either_uprobe, probing
from harness.tiers import Require
from kerneltrace_core._native import attach as native
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.errors import AttachError, UnsupportedError
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.session import binaries, prepare, uprobes
from kerneltrace_core.session import usdt as usdt_module
from kerneltrace_core.session.probes import Uprobe, Usdt
from kerneltrace_core.session.process_probes import TRACE_UPROBE_MULTI
from kerneltrace_core.session.uprobes import UprobeWay
from kerneltrace_core.session.usdt_notes import parse_notes

pytestmark = pytest.mark.kernel

PERF = UprobeWay(multi=False, by_process=True)
PYTHON = "/usr/bin/python3.11"


WAYS = ["uprobe_multi_by_process", "uprobes"]


def attach_by(way: str, require: Require, monkeypatch: pytest.MonkeyPatch) -> None:
    require(way)
    if way == "uprobes":
        monkeypatch.setattr(uprobes, "uprobe_way", lambda: PERF)
        monkeypatch.setattr(prepare, "uprobe_way", lambda: PERF)


def usdt_by_perf() -> Support:
    """Tell whether libbpf leaves it to its caller how a USDT program is to be attached."""
    with BpfObject(compile_object("usdt").read_bytes(), "usdt") as opened:
        opened.select({"on_usdt"})
        opened.load()
        if opened.program("on_usdt").attach_type != TRACE_UPROBE_MULTI:
            return Support.yes()
    return Support.no("this libbpf loads them for uprobe_multi links", "libbpf before 1.3")


def is_x86_64() -> Support:
    machine = platform.machine()
    return Support.yes() if machine == "x86_64" else Support.no(f"this is {machine}")


@pytest.fixture(params=WAYS)
def plain_way(
    request: pytest.FixtureRequest, require: Require, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attach by uprobe_multi links, then through perf events; each where the kernel has it."""
    attach_by(request.param, require, monkeypatch)


def read_by(way: str, require: Require, monkeypatch: pytest.MonkeyPatch) -> None:
    require("perf_links")
    attach_by(way, require, monkeypatch)
    if way == "uprobes":
        require("USDT programs through perf events", probe=usdt_by_perf)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, require: Require, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do so where programs can read arguments, which they find by a cookie."""
    read_by(request.param, require, monkeypatch)


@pytest.fixture(scope="module")
def path() -> str:
    return str(compile_library("traced"))


@pytest.fixture(scope="module")
def traced(path: str) -> ctypes.CDLL:
    return ctypes.CDLL(path)


def sums(probes: Probing) -> tuple[int, int, int]:
    return probes["first_sum"], probes["second_sum"], probes["third_sum"]


@pytest.mark.usefixtures("way")
def test_arguments_in_registers_memory_and_constants_are_read(
    path: str, traced: ctypes.CDLL
) -> None:
    with probing("usdt", Usdt(path, "kttest", "forms")) as probes:
        for value in range(23):
            traced.traced_forms(-value, ctypes.c_long(value << 33))

        assert probes["hits"] == 23
        assert probes["arguments"] == 3
        assert sums(probes) == (-sum(range(23)), sum(range(23)) << 33, -7 * 23)


@pytest.mark.parametrize("traced_by", ["uprobe_multi_by_process", "uprobes"])
def test_an_element_of_an_array_is_read_by_objects_of_libbpf_1_7(
    traced_by: str,
    path: str,
    traced: ctypes.CDLL,
    require: Require,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require("x86-64", probe=is_x86_64)
    read_by(traced_by, require, monkeypatch)
    numbers = (ctypes.c_long * 8)(*range(100, 108))

    with probing("usdt_indexed", Usdt(path, "kttest", "indexed")) as probes:
        for index in range(7):
            traced.traced_indexed(-index, numbers, ctypes.c_long(index))

        assert probes["hits"] == 7
        assert probes["arguments"] == 3
        assert sums(probes) == (-sum(range(7)), sum(range(101, 108)), -7 * 7)


@pytest.mark.usefixtures("way")
def test_each_place_of_a_tracepoint_has_its_own_arguments(path: str, traced: ctypes.CDLL) -> None:
    with probing("usdt", Usdt(path, "kttest", "two")) as probes:
        for _ in range(23):
            traced.traced_two_places(-3)
        assert probes["hits"] == 2 * 23
        assert sums(probes) == (-3 * 2 * 23, 0, 0)


@pytest.mark.usefixtures("way")
def test_a_semaphore_is_up_while_the_link_is_attached(path: str, traced: ctypes.CDLL) -> None:
    spec = Usdt(path, "kttest", "gated", pid=os.getpid())
    with probing("usdt", spec, attach=False) as probes:
        (link,) = probes.links
        for times in range(1, 4):
            assert traced.traced_is_gated() == 0
            traced.traced_gated(1)
            link.attach()
            assert traced.traced_is_gated() == 1
            traced.traced_gated(5)
            link.detach()
            assert probes["hits"] == times
            assert probes["first_sum"] == 5 * times
        assert traced.traced_is_gated() == 0


@pytest.mark.usefixtures("plain_way")
def test_a_program_that_reads_no_arguments_attaches_too(path: str, traced: ctypes.CDLL) -> None:
    with probing("usdt", Usdt(path, "kttest", "gated", program="on_plain")) as probes:
        for _ in range(23):
            traced.traced_gated(1)
        assert probes["plain_hits"] == 23


def test_nobody_with_two_capabilities_reads_arguments_and_raises_semaphores(
    require: Require, path: str, traced: ctypes.CDLL
) -> None:
    require("uprobe_multi_by_process")

    def count() -> tuple[int, ...]:
        uprobes.uprobe_way.cache_clear()
        specs = [
            Usdt(path, "kttest", "forms", pid=os.getpid()),
            Usdt(path, "kttest", "gated", pid=os.getpid(), program="on_plain"),
        ]
        with probing("usdt", *specs) as probes:
            for value in range(23):
                traced.traced_forms(value, ctypes.c_long(2))
                traced.traced_gated(value)
            return (probes["hits"], probes["plain_hits"], *sums(probes))

    assert as_nobody(count) == (23, 23, sum(range(23)), 2 * 23, -7 * 23)


def has_notes() -> Support:
    """Tell whether Debian's interpreter is here, with its static tracepoints."""
    try:
        notes = parse_notes(Path(PYTHON).read_bytes())
    except OSError as error:
        return Support.no(f"{PYTHON}: {error.strerror}", "apt install python3.11")
    named = any(note.name == "gc__start" for note in notes)
    return Support.yes() if named else Support.no(f"{PYTHON} was built without --with-dtrace")


@contextmanager
def collecting() -> Iterator[subprocess.Popen[str]]:
    """Start an interpreter that collects the generation that each line names."""
    script = (
        "import gc, sys\n"
        "gc.disable()\n"
        "for line in sys.stdin:\n"
        "    gc.collect(int(line))\n"
        "    print('done', flush=True)\n"
    )
    with subprocess.Popen(
        [PYTHON, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        collect(child, 0)
        yield child
        child.communicate()


def collect(child: subprocess.Popen[str], generation: int) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{generation}\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"


@pytest.mark.usefixtures("way")
def test_collections_of_debians_python_are_counted_with_their_generation(require: Require) -> None:
    require("static tracepoints of Debian's Python", probe=has_notes)
    with collecting() as child, collecting() as bystander:
        spec = Usdt(PYTHON, "python", "gc__start", pid=child.pid)
        with probing("usdt", spec, tgid=child.pid) as probes:
            for generation in (0, 1, 2, 2, 1):
                collect(child, generation)
                collect(bystander, generation)

            assert probes["hits"] == 5
            assert probes["arguments"] == 1
            assert probes["first_sum"] == 0 + 1 + 2 + 2 + 1
            probes["traced_tgid"] = bystander.pid
            collect(bystander, 2)
            assert probes["hits"] == 5


@pytest.mark.usefixtures("way")
def test_the_running_interpreter_is_found(
    path: str, traced: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = binaries.own_files()
    assert files[0] == os.path.realpath("/proc/self/exe")
    # This interpreter may have no static tracepoints, so that a library stands for its libpython.
    monkeypatch.setattr(usdt_module, "own_files", lambda: [*files, path])

    with probing("usdt", Usdt.self_("kttest", "two")) as probes:
        traced.traced_two_places(1)
        child = os.fork()
        if child == 0:
            traced.traced_two_places(1)
            os._exit(0)
        probes["traced_tgid"] = child
        os.waitpid(child, 0)
        assert probes["hits"] == 2


def run_debians(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in Debian's interpreter with this package, the harness and cffi of this one."""
    root = Path(__file__).parents[2]
    packages = importlib.util.find_spec("_cffi_backend")
    folders = [str(root / "src"), str(root / "tests")]
    if packages is not None and packages.origin is not None:
        folders.append(str(Path(packages.origin).parent))
    return subprocess.run(
        [PYTHON, "-c", f"import sys; sys.path += {folders!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )


def can_run_debians() -> Support:
    """Tell whether the compiled parts fit Debian's interpreter as well."""
    tried = run_debians("import kerneltrace_core._native.attach")
    return Support.yes() if tried.returncode == 0 else Support.no(tried.stderr.splitlines()[-1])


def test_debians_python_traces_itself(require: Require) -> None:
    require("static tracepoints of Debian's Python", probe=has_notes)
    require("perf_links")
    require("uprobes of either kind", probe=either_uprobe)
    require("cffi for Debian's Python", probe=can_run_debians)
    told = run_debians(
        "import gc\n"
        "from harness.probing import probing\n"
        "from kerneltrace_core.session.probes import Usdt\n"
        "gc.disable()\n"
        "with probing('usdt', Usdt.self_('python', 'gc__start')) as probes:\n"
        "    for _ in range(23): gc.collect(1)\n"
        "    print(probes['hits'], probes['first_sum'])\n"
    )
    assert told.stdout.split() == ["23", "23"], told.stderr


def test_without_cookies_only_programs_that_read_no_arguments_attach(
    require: Require, path: str, traced: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_by("uprobes", require, monkeypatch)
    require("USDT programs through perf events", probe=usdt_by_perf)

    def no_links(*_: object, **__: object) -> int:
        raise AttachError("create link: Invalid argument (EINVAL)", errno=errno.EINVAL)

    monkeypatch.setattr(native, "create_link", no_links)

    with probing("usdt", Usdt(path, "kttest", "gated", program="on_plain")) as probes:
        for _ in range(23):
            traced.traced_gated(1)
        assert probes["plain_hits"] == 23
    assert traced.traced_is_gated() == 0
    spec = Usdt(path, "kttest", "gated")
    with pytest.raises(UnsupportedError) as caught, probing("usdt", spec):
        pass
    assert "EINVAL: this kernel has no attach cookies" in str(caught.value)
    assert 'or a SEC("uprobe") program that reads no arguments' in str(caught.value)
    assert traced.traced_is_gated() == 0


def test_what_is_not_there_is_said(path: str, require: Require) -> None:
    require("uprobes of either kind", probe=either_uprobe)
    specs = {
        Usdt(path, "kttest", "gatet"): "did you mean kttest:gated?",
        Usdt(path, "other", "thing"): "it has kttest:forms, kttest:gated, kttest:",
        Usdt("/bin/true", "a", "b"): "has no static tracepoints",
        Usdt("/nowhere", "a", "b"): "there is no /nowhere",
        Usdt.self_("python", "no_such"): "<this interpreter>:python:no_such",
    }
    with probing("usdt", Uprobe(path, "traced_twice", program="on_plain")) as probes:
        for spec, told in specs.items():
            link = type(probes.links[0])(probes.object, "on_plain", spec)
            with pytest.raises(AttachError) as caught:
                link.attach()
            assert told in str(caught.value)
            assert caught.value.errno == 2
