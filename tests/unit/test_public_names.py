"""What is public: the names of every package root, and that importing them stays cheap."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import kerneltrace_core

ROOT = Path(kerneltrace_core.__file__)

# The snapshot. A name that is taken away breaks somebody's program; a new one is a promise.
PUBLIC = {
    "kerneltrace_core": """
        Address Array AttachError BpfMap BtfTracepoint Bytes Cgroup Chars ClosedError Device
        EventHeader EventLayoutError Fentry Fexit Filter FmodRet FormatError Histogram IPv4 IPv6
        KernelEvent KernelTraceError Kprobe Kretprobe Link LoadError Lsm MapEmptyError MapError
        MapFullError MapKeyError MapKeyExistsError NativeMissingError Offset OptionError PerfEvent
        PrivilegeError Probe RawTracepoint RingError Session Tc Tracepoint UnsupportedError Uprobe
        Uretprobe Usdt Xdp __version__ be16 be32 be64 bpf_stats chars device error_name f32 f64
        kernel_event open_pinned s16 s32 s64 s8 u16 u32 u64 u8
        """,
    "kerneltrace_core.btf": "FormatError",
    "kerneltrace_core.codegen": "generate",
    "kerneltrace_core.include": "include_folder",
    "kerneltrace_core.maps": """
        ArrayMap ArrayOfMaps BloomFilter BpfMap Bucket BuildIdFrame Codec DescriptorMap HashMap
        HashOfMaps Histogram KeyedMap MapFlags MapInfo MapType MappedArray Maps PerCpuArrayMap
        PerCpuHashMap QueueMap StackTraceMap StorageMap TrieMap UnreadableMap open_map open_pinned
        stack_failure
        """,
    "kerneltrace_core.requests": """
        CallStats Exchange IntegrationOptions KernelStats Record RequestTracer TracerOptions current
        greenlet_library request_here resolve
        """,
    "kerneltrace_core.ring": "Drained ReaderProtocol Strided",
    "kerneltrace_core.testing": "FakeMapCalls FakeRing FakeSession capture_events record replay",
    "kerneltrace_asgi": "KernelTraceMiddleware kerneltrace_lifespan",
}
# Their parts are imported one by one.
WITHOUT = {"_native", "bpf", "cli", "doctor", "events", "exporters", "kernel", "session"}


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_are_these(package: str) -> None:
    found = importlib.import_module(package)

    assert sorted(found.__all__) == PUBLIC[package].split()
    assert not [name for name in found.__all__ if not hasattr(found, name)]


def test_every_package_says_what_of_it_is_public() -> None:
    packages = {path.parent.name for path in ROOT.parent.glob("*/__init__.py")}

    assert packages == {name.partition(".")[2] for name in PUBLIC} - {""} | WITHOUT
    for name in WITHOUT:
        package = importlib.import_module(f"kerneltrace_core.{name}")
        assert not hasattr(package, "__all__")


def test_what_is_imported_late_is_what_type_checkers_are_told() -> None:
    told: dict[str, str] = {}
    for node in ast.parse(ROOT.read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in node.body:
                assert isinstance(each, ast.ImportFrom)
                assert each.module is not None
                module = each.module.removeprefix("kerneltrace_core.")
                told |= {alias.asname or alias.name: module for alias in each.names}

    assert told == kerneltrace_core._LAZY


def test_every_late_name_is_public_and_is_what_its_module_has() -> None:
    for name, module in kerneltrace_core._LAZY.items():
        there = importlib.import_module(f"kerneltrace_core.{module}")
        assert getattr(kerneltrace_core, name) is getattr(there, name)
        assert name in kerneltrace_core.__all__
    assert set(kerneltrace_core.__all__) <= set(dir(kerneltrace_core))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Sesion'"):
        kerneltrace_core.Sesion  # noqa: B018


def modules_after(statement: str) -> set[str]:
    """Return our modules that an interpreter has after a statement."""
    script = (
        f"import sys\n{statement}\n"
        "print(*[name for name in sys.modules if name.startswith(('kerneltrace', '_cffi'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_importing_the_root_imports_the_errors_alone() -> None:
    assert modules_after("import kerneltrace_core") == {
        "kerneltrace_core",
        "kerneltrace_core.errors",
    }


def test_the_blueprint_of_a_session_needs_nothing_native() -> None:
    loaded = modules_after(
        "from kerneltrace_core import BtfTracepoint, Session\n"
        "Session('x.bpf.o', [BtfTracepoint('sys_enter')])"
    )

    assert "kerneltrace_core.session.session" in loaded
    assert not [name for name in loaded if "._native" in name or name.startswith("_cffi")]
