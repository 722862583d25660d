"""Probes by section names, and which program a probe takes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from harness.objects import compile_object
from harness.probing import probing
from harness.tiers import Require
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.errors import AttachError
from kerneltrace_core.session.auto import auto_probes
from kerneltrace_core.session.choosing import choose_program
from kerneltrace_core.session.probes import (
    Cgroup,
    Kprobe,
    PerfEvent,
    Probe,
    RawTracepoint,
    Tc,
    Tracepoint,
    Uprobe,
    Usdt,
    Xdp,
)
from kerneltrace_core.session.sections import BySection

pytestmark = pytest.mark.kernel


@pytest.fixture
def opened() -> Iterator[BpfObject]:
    with BpfObject(compile_object("auto").read_bytes(), "auto") as it:
        yield it


@pytest.mark.needs("tracefs")
def test_every_program_that_loads_is_attached_where_its_section_says(opened: BpfObject) -> None:
    specs = auto_probes(opened)
    assert [spec.describe() for spec in specs] == [
        "tracepoint syscalls:sys_enter_getppid",
        "raw tracepoint sys_enter",
        "BTF tracepoint sys_enter",
        "uprobe libc.so.6:getppid",
    ]
    with probing("auto", *specs) as probes:
        for _ in range(23):
            os.getppid()
        hits = ("tracepoint_hits", "raw_hits", "btf_hits", "uprobe_hits")
        assert [probes[name] for name in hits] == [23] * 4


def test_a_program_whose_section_says_not_where_is_named(opened: BpfObject) -> None:
    opened.select({"on_raw", "nowhere", "no_rate"})
    with pytest.raises(AttachError) as caught:
        auto_probes(opened)
    assert str(caught.value).startswith(
        'attach object auto by section: nowhere (SEC("uprobe")), no_rate (SEC("perf_event")) '
        "do not say where they belong"
    )
    assert auto_probes(opened, optional=True) == (
        RawTracepoint("sys_enter", program="on_raw", optional=True),
    )


def test_what_only_libbpf_can_attach_is_left_to_it(require: Require) -> None:
    require("kprobe")
    with probing("auto", BySection("ksyscall/getppid", program="on_ksyscall")) as probes:
        (link,) = probes.links
        for _ in range(23):
            os.getppid()
        assert probes["ksyscall_hits"] == 23
        link.detach()
        os.getppid()
        link.attach()
        os.getppid()
        assert probes["ksyscall_hits"] == 24


@pytest.mark.parametrize(
    ("spec", "program"),
    [
        (Tracepoint("syscalls", "sys_enter_getppid"), "on_tracepoint"),
        (Tracepoint("sched", "sched_switch", program="on_tracepoint"), "on_tracepoint"),
        (Tracepoint("a", "b", program="tp/syscalls/sys_enter_getppid"), "on_tracepoint"),
        (Kprobe("vfs_read"), "on_kprobe"),
        (Kprobe("other", program="kprobe/vfs_read"), "on_kprobe"),
        (Uprobe("libc.so.6", "getppid"), "on_uprobe"),
        (Uprobe("libc.so.6", "other"), "nowhere"),
        (Usdt("x", "y", "z"), "nowhere"),
        (PerfEvent(99), "no_rate"),
    ],
    ids=str,
)
def test_a_program_is_chosen_by_name_section_or_kind(
    opened: BpfObject, spec: Probe, program: str
) -> None:
    assert choose_program(opened, spec) == program


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (RawTracepoint("other"), "no program of object auto is made for it (it has on_tracepoint"),
        (RawTracepoint("x", program="on_rw"),
         "object auto has no program of that name or section (did you mean on_raw"),
        (Xdp("lo"), "no program of object auto is made for it"),
        (Xdp("lo", program="on_raw"), "it is a raw tracepoint program (for XDP take a program"),
        (Kprobe("f", program="on_tracepoint"), "it is a tracepoint program (for kprobe take a"),
    ],
    ids=str,
)  # fmt: skip
def test_a_program_that_is_not_there_or_does_not_fit_is_told_with_what_would(
    opened: BpfObject, spec: Probe, told: str
) -> None:
    with pytest.raises(AttachError) as caught:
        choose_program(opened, spec)
    assert told in str(caught.value)
    assert caught.value.errno in (errno.ENOENT, errno.EINVAL)


def test_of_several_programs_one_must_be_named() -> None:
    data = compile_object("network").read_bytes()
    with BpfObject(data, "network") as opened:
        chosen = [choose_program(opened, spec) for spec in (Xdp("a"), Tc("a"), Cgroup("/a"))]
        assert chosen == ["on_xdp", "on_tc", "on_connect"]
    with (
        BpfObject(compile_object("attach").read_bytes(), "attach") as opened,
        pytest.raises(AttachError) as caught,
    ):
        choose_program(opened, Uprobe("libc.so.6", "getppid"))
    told = 'on_uprobe (SEC("uprobe")), on_other (SEC("uprobe")) would do (say which: program=...)'
    assert told in str(caught.value)
