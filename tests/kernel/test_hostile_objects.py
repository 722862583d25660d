"""Objects with names that no compiler gives: a typed error or a session, and nothing else."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.objects import compile_object
from kerneltrace_core import KernelTraceError, LoadError, Session
from kerneltrace_core._native import lib

DATA = compile_object("session").read_bytes()
NAMES = [b"on_call\0", b"calls\0", b"license\0", b"tp_btf/sys_enter\0", b".maps\0"]


@pytest.fixture(autouse=True)
def needs(require: Callable[..., None]) -> None:
    require("tracepoint:sys_enter", "ring_buffer")


@pytest.mark.parametrize("first", [b"\x02", b"\x021", b"\xff"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_with_a_byte_that_none_has_is_opened_or_refused(name: bytes, first: bytes) -> None:
    changed = DATA.replace(name, first + name[len(first) :])
    assert changed != DATA

    with contextlib.suppress(KernelTraceError):
        Session(changed, programs=[]).open().close()


def test_an_object_is_read_from_a_path_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.bpf.o")
    path.write_bytes(DATA)

    with Session(path, programs=[]) as session:
        assert "calls" in session.rings


def test_a_path_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(LoadError, match="embedded null byte"):
        Session("a\0b.o").open()


def test_a_thread_that_ends_leaves_no_log_of_libbpf() -> None:
    def refused() -> None:
        with pytest.raises(LoadError):
            lib.open_object(b"no object", "x")

    def in_a_thread() -> None:
        thread = threading.Thread(target=refused)
        thread.start()
        thread.join()

    in_a_thread()
    before = data_kib()
    for _ in range(200):
        in_a_thread()

    # Each log has 256 KiB: they were 50 MiB. A thread's own arena is 64 MiB at most, unused.
    assert data_kib() - before < 200 * 256 // 2


def data_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
