"""Specs of probes: frozen, checked when they are made, and told in the kernel's words."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from kerneltrace_core.errors import OptionError
from kerneltrace_core.session import probes as every
from kerneltrace_core.session.probes import (
    BtfTracepoint,
    Cgroup,
    Fentry,
    Kprobe,
    Kretprobe,
    Lsm,
    PerfEvent,
    Probe,
    RawTracepoint,
    Tc,
    Tracepoint,
    Uprobe,
    Uretprobe,
    Usdt,
    Xdp,
)
from kerneltrace_core.session.sections import BySection, probe_of_section

pytestmark = pytest.mark.unit

TOLD = {
    Tracepoint("syscalls", "sys_enter_openat"): "tracepoint syscalls:sys_enter_openat",
    RawTracepoint("sys_enter"): "raw tracepoint sys_enter",
    BtfTracepoint("sched_switch"): "BTF tracepoint sched_switch",
    Kprobe("vfs_read"): "kprobe vfs_read",
    Kprobe("vfs_read", 16): "kprobe vfs_read+0x10",
    Kretprobe("vfs_read", label="reads"): "kretprobe vfs_read (reads)",
    Fentry("vfs_read"): "fentry vfs_read",
    Lsm("file_open"): "LSM hook file_open",
    Uprobe("libc.so.6", "malloc"): "uprobe libc.so.6:malloc",
    Uprobe("/bin/x", "main", 4, pid=7): "uprobe /bin/x:main+0x4 of process 7",
    Uretprobe("/bin/x", offset=0x1234): "uretprobe /bin/x+0x1234",
    Usdt("/bin/x", "a", "b"): "USDT /bin/x:a:b",
    Usdt.self_("python", "gc__start"): "USDT <this interpreter>:python:gc__start",
    PerfEvent(99): "perf event cpu-clock at 99 Hz",
    PerfEvent(count=5, event="cycles", pid=1): "perf event cycles each 5 of process 1",
    PerfEvent(99, cpu=0): "perf event cpu-clock at 99 Hz on CPU 0",
    Xdp("eth0", "generic"): "XDP eth0 (generic)",
    Tc("eth0", "egress"): "tc eth0 egress",
    Cgroup(Path("/sys/fs/cgroup/x")): "cgroup /sys/fs/cgroup/x",
}


@pytest.mark.parametrize("spec", TOLD, ids=str)
def test_a_spec_says_what_it_is(spec: Probe) -> None:
    assert spec.describe() == str(spec) == TOLD[spec]


@pytest.mark.parametrize("spec", TOLD, ids=str)
def test_a_spec_is_frozen_hashable_and_pickles(spec: Probe) -> None:
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.program = "other"  # type: ignore[misc]


def test_every_public_kind_is_told_here() -> None:
    told = {type(spec).__name__ for spec in TOLD} | {"Fexit", "FmodRet", "Probe"}
    assert told == set(every.__all__)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Tracepoint("", "x"), "Tracepoint category: '' is not a name"),
        (lambda: Tracepoint("sys/calls", "x"), "is not a name without a slash"),
        (lambda: Tracepoint("a", "b", program=""), "Tracepoint program: '' is not a name, or None"),
        (lambda: Tracepoint("a", "b", optional=1), "Tracepoint optional: 1 is not True or False"),
        (lambda: RawTracepoint(7), "RawTracepoint name: 7 is not a name"),
        (lambda: Kprobe("f", -1), "Kprobe offset: -1 is not a whole number from 0"),
        (lambda: Kprobe("f", True), "Kprobe offset: True is not a whole number"),
        (lambda: Kprobe("f\0g"), "is not a name"),
        (lambda: Uprobe("x"), "Uprobe x: neither a symbol nor an offset is given"),
        (lambda: Uprobe("x", "y", pid=0), "Uprobe pid: 0 is not a whole number from 1"),
        (lambda: Usdt("x", "y", "z", pid=0), "Usdt pid: 0 is not a whole number from 1"),
        (lambda: PerfEvent(), "PerfEvent: give either frequency_hz or count"),
        (lambda: PerfEvent(1, 1), "PerfEvent: give either frequency_hz or count"),
        (lambda: PerfEvent(99, event="cycle"), "PerfEvent event: 'cycle' is not one of 'cpu-"),
        (lambda: Xdp("eth0", "fast"), "Xdp mode: 'fast' is not one of 'auto', 'native'"),
        (lambda: Tc("eth0", "in"), "Tc direction: 'in' is not one of 'ingress', 'egress'"),
        (lambda: Cgroup(""), "Cgroup path: '' is not a name"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_allowed(make: Callable[[], Probe], told: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert told in str(caught.value)


SECTIONS: dict[str, Probe] = {
    "tp/sched/sched_switch": Tracepoint("sched", "sched_switch", program="p"),
    "tracepoint/sched/sched_switch": Tracepoint("sched", "sched_switch", program="p"),
    "?tp/sched/sched_switch": Tracepoint("sched", "sched_switch", program="p"),
    "raw_tp/sys_enter": RawTracepoint("sys_enter", program="p"),
    "raw_tracepoint.w/sys_enter": RawTracepoint("sys_enter", program="p"),
    "tp_btf/sys_enter": BtfTracepoint("sys_enter", program="p"),
    "kprobe/vfs_read": Kprobe("vfs_read", program="p"),
    "kprobe/vfs_read+0x8": Kprobe("vfs_read", 8, program="p"),
    "kretprobe/vfs_read": Kretprobe("vfs_read", program="p"),
    "fentry.s/vfs_read": Fentry("vfs_read", program="p"),
    "lsm/file_open": Lsm("file_open", program="p"),
    "uprobe//bin/x:main": Uprobe("/bin/x", "main", program="p"),
    "uprobe/libc.so.6:malloc+4": Uprobe("libc.so.6", "malloc", 4, program="p"),
    "uretprobe.s//bin/x:main": Uretprobe("/bin/x", "main", program="p"),
    "usdt//bin/x:a:b": Usdt("/bin/x", "a", "b", program="p"),
    "ksyscall/openat": BySection("ksyscall/openat", program="p"),
}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_names_its_probe(section: str) -> None:
    assert probe_of_section("p", section) == SECTIONS[section]


@pytest.mark.parametrize(
    "section",
    ["kprobe", "tp_btf", "uprobe", "usdt", "xdp", "tc", "perf_event", "syscall", "tp/sched", "",
     "uprobe//bin/x", "usdt//bin/x:a", "cgroup/connect4", "kprobe/", "iter/task", "tp/a/b/c"],
)  # fmt: skip
def test_a_section_that_says_not_where_names_none(section: str) -> None:
    assert probe_of_section("p", section) is None


@pytest.mark.parametrize("section", ["tp/sched/sched_switch", "kprobe/vfs_read+0x8", "usdt/x:a:b"])
def test_the_sections_of_a_probe_are_what_its_section_names(section: str) -> None:
    probe = probe_of_section("p", section)
    assert probe is not None
    assert section.partition("/")[2] in probe.section_targets()
