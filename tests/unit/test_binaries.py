"""Find binaries and functions in them; names of tracepoints and of the kernel's functions."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneltrace_core.kernel.processors import online_processors, parse_processors
from kerneltrace_core.kernel.symbols import nearest, parse_kallsyms
from kerneltrace_core.kernel.tracefs import (
    category_names,
    find_tracefs,
    read_tracepoint_id,
    tracepoint_names,
)
from kerneltrace_core.session.binaries import parse_mapped_files

pytestmark = pytest.mark.unit

MAPS = """\
55d0c8a00000-55d0c8a01000 r--p 00000000 08:01 131  /usr/bin/python3.11
55d0c8a01000-55d0c8c00000 r-xp 00001000 08:01 131  /usr/bin/python3.11
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
7f1000000000-7f1000001000 r-xp 00000000 08:01 99   /usr/lib/a folder/libc.so.6
7f2000000000-7f2000001000 r-xp 00000000 08:01 98   /tmp/gone.so (deleted)
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0    [stack]
"""


def test_files_that_are_mapped_are_each_told_once() -> None:
    assert parse_mapped_files(MAPS.splitlines(keepends=True)) == [
        "/usr/bin/python3.11",
        "/usr/lib/a folder/libc.so.6",
    ]


def test_processors_are_counted_in_ranges() -> None:
    assert parse_processors("0-3,6,8-9\n") == [0, 1, 2, 3, 6, 8, 9]
    assert parse_processors("0") == [0]
    assert parse_processors("0,2-3,8") == [0, 2, 3, 8]
    assert parse_processors("\n") == []
    with pytest.raises(ValueError):
        parse_processors("a-b")
    assert online_processors("/nowhere") != []


def test_functions_of_kallsyms_are_its_text_symbols() -> None:
    lines = [
        "ffffffff81000000 T _stext",
        "0000000000000000 t do_unlinkat",
        "0000000000000000 D jiffies",
        "0000000000000000 W weak_one",
        "0000000000000000 t in_module\t[veth]",
        "malformed",
    ]
    assert parse_kallsyms(lines) == ["_stext", "do_unlinkat", "weak_one", "in_module"]


def test_what_was_meant_is_near_and_what_a_compiler_renamed_comes_first() -> None:
    known = ["vfs_read", "vfs_readv", "vfs_write", "tcp_v4_rcv.isra.0", "tcp_v4_rcv_x"]
    assert nearest("vfs_raed", known)[0] == "vfs_read"
    assert nearest("tcp_v4_rcv", known)[0] == "tcp_v4_rcv.isra.0"
    assert nearest("quite_different", known) == []
    assert nearest("vfs_read", []) == []


def test_tracefs_is_read_where_it_is_mounted(tmp_path: Path) -> None:
    place = tmp_path / "events" / "sched" / "sched_switch"
    place.mkdir(parents=True)
    (place / "id").write_text("314\n")
    (tmp_path / "events" / "enable").touch()

    assert find_tracefs((str(tmp_path / "none"), str(tmp_path))) == tmp_path
    assert find_tracefs((str(tmp_path / "none"),)) is None
    assert category_names(tmp_path) == ["sched"]
    assert tracepoint_names(tmp_path, "sched") == ["sched_switch"]
    assert tracepoint_names(tmp_path, "other") == []
    assert read_tracepoint_id(tmp_path, "sched", "sched_switch") == 314
    with pytest.raises(FileNotFoundError):
        read_tracepoint_id(tmp_path, "sched", "other")
