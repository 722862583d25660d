"""The headers for probes of users compile everywhere, and say to Python what they should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.bpf_source import compile_bpf
from kerneltrace_core.btf.layout import EventTag, ObjectLayout, StructLayout
from kerneltrace_core.errors import LoadError
from kerneltrace_core.session import filter_maps

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="BPF objects are compiled on Linux"
)

BODY = """
struct first { struct kt_header header; __u64 number; };
struct second { struct kt_header header; char text[8]; };
KT_EVENT(first, 1);
#define TAG 65535
KT_EVENT(second, TAG);
KT_PROBE(one);
KT_PROBE(two);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} perf SEC(".maps");

SEC("raw_tp/sys_enter")
int one(struct bpf_raw_tracepoint_args *ctx)
{
	struct first *event;

	if (WANTED(one))
		return 0;
	event = kt_reserve(one, &events, first);
	if (!event)
		return 0;
	event->number = ctx->args[0];
	if (event->number)
		kt_submit(one, event);
	else
		kt_discard(one, event);
	return 0;
}

SEC("raw_tp/sys_enter")
int two(struct bpf_raw_tracepoint_args *ctx)
{
	struct second event = { .text = "second" };

	kt_fill(&event, second);
	kt_ring_output(two, &events, &event, 28);
	return kt_output(two, ctx, &perf, &event, sizeof(event)) ? 1 : 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
"""
EVENTS = "#include <kerneltrace/kt_event.h>\n#define WANTED(program) 0\n"
FILTERS = (
    "#include <kerneltrace/kt_filter.h>\n#define WANTED(program) !kt_wanted(program)\n"
    "_Static_assert(KT_FILTER_TGIDS == {} && KT_FILTER_TIDS == {} && KT_FILTER_CGROUPS == {} && "
    'KT_FILTER_UIDS == {} && KT_FILTER_FOLLOW == {}, "as in filter_maps.py");\n'
).format(*filter_maps.FLAGS.values(), filter_maps.FOLLOW)
STRICT = "-Wextra"

# What bpftool makes of a kernel's BTF, cut down to what bpf_helpers.h needs; with a task_struct
# that has another shape than the header's own.
VMLINUX = """
#ifndef __VMLINUX_H__
#define __VMLINUX_H__
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef unsigned short __sum16;
typedef unsigned long size_t;
typedef _Bool bool;
enum { false = 0, true = 1 };
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERF_EVENT_ARRAY = 4,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
enum { BPF_F_CURRENT_CPU = 4294967295ULL };
enum bpf_func_id { BPF_FUNC_unspec = 0 };
struct bpf_raw_tracepoint_args { __u64 args[0]; };
struct ns_common { long other; unsigned int inum; };
struct pid { int count; unsigned int level; };
struct task_struct { long before; int pid; int tgid; struct pid *thread_pid; };
#pragma clang attribute pop
#endif
"""


@pytest.mark.parametrize("cpu", ["-mcpu=v1", "-mcpu=v2", "-mcpu=v3"])
@pytest.mark.parametrize("header", [EVENTS, FILTERS], ids=["event", "filter"])
@pytest.mark.parametrize("before", ["", VMLINUX], ids=["alone", "vmlinux"])
def test_it_compiles_without_a_warning_with_and_without_a_vmlinux_header(
    before: str, header: str, cpu: str
) -> None:
    layout = ObjectLayout.from_elf(compile_bpf(before + header + BODY, STRICT, cpu))

    assert dict(layout.events) == {
        "first": EventTag("first", 1, 0, 2),
        "second": EventTag("second", 65535, 0, 2),
    }
    assert dict(layout.probes) == {"one": 0, "two": 1}


def test_the_layouts_are_those_that_python_reads_and_writes() -> None:
    layout = ObjectLayout.from_elf(compile_bpf(FILTERS + BODY, STRICT))

    assert members(layout, "kt_header") == [
        ("type", 0, 2),
        ("size", 2, 2),
        ("cpu", 4, 4),
        ("time_ns", 8, 8),
        ("request", 16, 8),
    ]
    assert members(layout, "kt_counters") == [
        (name, 8 * place, 8)
        for place, name in enumerate(("seen", "submitted", "lost", "discarded", "filtered"))
    ]
    assert members(layout, "kt_filter") == [
        ("flags", 0, 4),
        ("pid_namespace", 4, 4),
        ("unfollowed", 8, 8),
    ]
    assert layout.structs["kt_filter"].size == filter_maps.LAYOUT.size
    assert {filter_maps.SETTINGS, *filter_maps.FLAGS} <= set(layout.maps)


def test_events_alone_bring_one_map() -> None:
    layout = ObjectLayout.from_elf(compile_bpf(EVENTS + BODY, STRICT))

    assert set(layout.maps) == {"events", "perf", "kt_counters"}
    assert set(layout.programs) == {"one", "two"}


def test_what_follows_forks_is_not_loaded_unless_it_is_asked_for() -> None:
    layout = ObjectLayout.from_elf(compile_bpf(FILTERS + BODY, STRICT))

    assert layout.programs["kt_follow_fork"].section == "?tp_btf/sched_process_fork"
    assert layout.programs["kt_follow_exit"].section == "?tp_btf/sched_process_exit"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("struct bare { __u64 a; }; KT_EVENT(bare, 1);", "no member named 'header'"),
        (
            "struct late { __u64 a; struct kt_header header; }; KT_EVENT(late, 1);",
            "late must begin with struct kt_header header",
        ),
        (
            "struct big { struct kt_header header; char a[65536]; }; KT_EVENT(big, 1);",
            "big is larger than 65535 bytes",
        ),
        (
            "struct no { struct kt_header header; }; KT_EVENT(no, 65536);",
            "the tag of no must be in 1..65535",
        ),
        ("KT_PROBE_AT(many, 64);", "more than 64 programs with KT_PROBE"),
        ("int f(void) { kt_count(unknown, seen); return 0; }", "kt_index_unknown"),
    ],
)
def test_a_mistake_is_told_by_the_compiler(wrong: str, said: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(said)):
        compile_bpf(EVENTS + wrong)


def test_an_object_of_several_files_gives_the_numbers_itself() -> None:
    layout = ObjectLayout.from_elf(compile_bpf(EVENTS + "KT_PROBE_AT(far, 63);" + BODY))

    assert dict(layout.probes) == {"far": 63, "one": 0, "two": 1}


def test_the_module_says_where_the_headers_are() -> None:
    command = [sys.executable, "-m", "kerneltrace_core.include"]

    folder = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    option = subprocess.run([*command, "--cflags"], capture_output=True, text=True, check=True)

    assert (Path(folder.removesuffix("\n")) / "kerneltrace" / "kt_filter.h").is_file()
    assert option.stdout == f"-I{folder}"


def test_an_installation_without_headers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from kerneltrace_core import include

    monkeypatch.setattr(include, "FIRST", "kerneltrace/missing.h")

    with pytest.raises(LoadError, match=r"find headers for probes: .*missing\.h is missing"):
        include.include_folder()


def members(layout: ObjectLayout, name: str) -> list[tuple[str, int, int]]:
    found = layout.structs[name]
    assert isinstance(found, StructLayout)
    return [(each.name, each.offset, each.type.size) for each in found.members]
