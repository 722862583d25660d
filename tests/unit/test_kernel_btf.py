from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneltrace_core.kernel import btf
from kerneltrace_core.kernel.features import minimal_btf
from unit.fake_kernel import btf_with

pytestmark = pytest.mark.unit

SIGN = btf.PREEMPTIBLE_SIGN.encode()


def of_release(release: str) -> SimpleNamespace:
    return SimpleNamespace(release=release)


def test_a_typedef_is_found_under_the_number_of_its_place() -> None:
    blob = btf_with(["sys_enter", "sys_exit"], types_before=5)
    found = btf.tracepoint_type_ids(blob, ["sys_exit", "sys_enter", "sched_switch"])
    assert found == {"sys_enter": 6, "sys_exit": 7}


def test_a_name_must_match_whole() -> None:
    blob = btf_with(["sched_switch_extra", "xsched_switch"])
    assert not btf.has_tracepoint(blob, "sched_switch")
    assert btf.has_tracepoint(blob, "sched_switch_extra")
    assert btf.tracepoint_type_ids(blob, ["sched_switch"]) == {}


def test_a_string_without_its_typedef_is_no_tracepoint() -> None:
    blob = btf_with(["sys_enter"])
    other_kind = blob.replace(struct.pack("=I", 8 << 24), struct.pack("=I", 7 << 24))
    assert btf.has_tracepoint(other_kind, "sys_enter")
    assert btf.tracepoint_type_ids(other_kind, ["sys_enter"]) == {}


def test_the_minimal_btf_is_btf() -> None:
    blob = minimal_btf()
    assert btf.is_btf(blob)
    assert btf.has_string(blob, "u64")
    assert btf.tracepoint_type_ids(blob, ["int"]) == {}


@pytest.mark.parametrize(
    ("blob", "cause"),
    [
        (b"", "no magic"),
        (b"\x7fELF" + bytes(60), "no magic"),
        (btf_with(["sys_enter"])[:-3], "a section ends at"),
        (struct.pack("=HBBIIIII", 0xEB9F, 2, 0, 24, 0, 0, 0, 0), "version 2"),
        (struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 6, 6, 0) + bytes(6), "whole words"),
    ],
)
def test_what_is_not_btf_is_refused(blob: bytes, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        btf.parse_header(blob)


def test_a_kind_from_the_future_is_refused_before_it_shifts_every_number() -> None:
    blob = btf_with(["a", "b"]).replace(
        struct.pack("=II", 1, 8 << 24), struct.pack("=II", 1, 30 << 24)
    )
    with pytest.raises(ValueError, match="type 1 is of unknown kind 30"):
        btf.tracepoint_type_ids(blob, ["b"])


@pytest.mark.parametrize("mapped", [True, False])
def test_a_kernel_that_preempts_programs_is_told_by_a_function_of_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no such device")

    if not mapped:
        monkeypatch.setattr(btf.mmap, "mmap", refuse)
    monkeypatch.setattr(btf.os, "uname", lambda: of_release("6.18.44"))
    path = tmp_path / "vmlinux"
    assert not btf.preempts_programs(str(path))
    for content, expected in (
        (b"", False),
        (b"\x7fELF", False),
        (btf_with(["sys_enter"]), False),
        (btf_with(["trace_call_bpf_faultable"]), False),
        (btf_with(["_in_its_place_"]).replace(b"btf_trace__in_its_place_", SIGN), True),
    ):
        path.write_bytes(content)
        assert btf.preempts_programs(str(path)) is expected


@pytest.mark.parametrize(
    ("release", "expected"),
    [("5.10.0", False), ("7.0.1-generic", True), ("10.2", True), ("x", False)],
)
def test_or_by_its_number_where_nothing_else_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, expected: bool
) -> None:
    monkeypatch.setattr(btf.os, "uname", lambda: of_release(release))
    assert btf.preempts_programs(str(tmp_path / "none")) is expected


def test_a_file_is_checked_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(btf_with(["sys_enter"]))
    assert btf.has_tracepoint(btf.read_vmlinux(str(path)), "sys_enter")
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="no magic"):
        btf.read_vmlinux(str(path))
    with pytest.raises(FileNotFoundError):
        btf.read_vmlinux(str(tmp_path / "missing"))


@given(st.lists(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), unique=True), st.integers(0, 9))
def test_every_typedef_is_found(names: list[str], before: int) -> None:
    found = btf.tracepoint_type_ids(btf_with(names, types_before=before), names)
    assert found == {name: before + 1 + index for index, name in enumerate(names)}


@given(st.binary(max_size=120), st.integers(0, 60))
def test_damaged_btf_gives_value_error_or_an_answer(noise: bytes, at: int) -> None:
    good = btf_with(["sys_enter", "sys_exit"], types_before=2)
    blob = good[:at] + noise + good[at + len(noise) :]
    with contextlib.suppress(ValueError):
        btf.tracepoint_type_ids(blob, ["sys_enter"])
