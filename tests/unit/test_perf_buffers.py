"""Which perf buffers a program may write to is read from the object's relocations."""

from __future__ import annotations

import struct
import sys

import pytest

from harness.bpf_source import compile_bpf
from kerneltrace_core.btf.elf import Elf
from kerneltrace_core.btf.layout import ObjectLayout
from kerneltrace_core.btf.perf_buffers import read_perf_buffers
from kerneltrace_core.errors import FormatError

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="BPF objects are compiled on Linux"
)

SOURCE = r"""
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define PERF { __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY); __uint(key_size, 4); \
               __uint(value_size, 4); }
struct PERF first SEC(".maps");
struct PERF second SEC(".maps");
struct PERF third SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } ring SEC(".maps");

static __noinline int below(void *ctx)
{ int a = 0; return bpf_perf_event_output(ctx, &third, BPF_F_CURRENT_CPU, &a, sizeof(a)); }

SEC("raw_tp/sys_enter") int to_none(void *ctx) { return 0; }
SEC("raw_tp/sys_enter") int to_ring(void *ctx)
{ int a = 0; return bpf_ringbuf_output(&ring, &a, sizeof(a), 0); }
SEC("raw_tp/sys_enter") int to_first(void *ctx)
{ int a = 0; return bpf_perf_event_output(ctx, &first, BPF_F_CURRENT_CPU, &a, sizeof(a)); }
SEC("raw_tp/sys_enter") int to_two(void *ctx)
{ int a = 0; bpf_perf_event_output(ctx, &second, BPF_F_CURRENT_CPU, &a, sizeof(a));
  return bpf_perf_event_output(ctx, &first, BPF_F_CURRENT_CPU, &a, sizeof(a)); }
SEC("raw_tp/sys_exit") int by_subprogram(void *ctx) { return below(ctx); }
char LICENSE[] SEC("license") = "GPL";
"""


def test_a_program_may_write_to_what_its_code_and_its_subprograms_name() -> None:
    layout = ObjectLayout.from_elf(compile_bpf(SOURCE))

    assert dict(layout.perf_buffers) == {
        "to_none": (),
        "to_ring": (),
        "to_first": ("first",),
        "to_two": ("first", "second"),
        "by_subprogram": ("third",),
    }


def test_without_a_perf_buffer_there_is_nothing_to_tell() -> None:
    source = SOURCE.replace("BPF_MAP_TYPE_PERF_EVENT_ARRAY", "BPF_MAP_TYPE_ARRAY")

    assert dict(ObjectLayout.from_elf(compile_bpf(source)).perf_buffers) == {}


BUFFERS = ("first", "second", "third")
PROGRAMS = ("to_none", "to_ring", "to_first", "to_two", "by_subprogram")


def damaged(section: str, offset: int, layout: str, number: int) -> Elf:
    """Return the object with another number so far into a section of it."""
    data = bytearray(compile_bpf(SOURCE))
    found = Elf.parse(bytes(data)).section(section)
    assert found is not None
    struct.pack_into(layout, data, found.offset + offset, number)
    return Elf.parse(bytes(data), "damaged.bpf.o")


def test_a_map_without_a_name_may_be_any_perf_buffer() -> None:
    names = [symbol.name for symbol in Elf.parse(compile_bpf(SOURCE)).symbols()]
    nameless = damaged(".symtab", 24 * (1 + names.index("first")), "=I", 0)

    assert read_perf_buffers(nameless, BUFFERS, PROGRAMS) == {
        "to_none": (),
        "to_ring": (),
        "to_first": BUFFERS,
        "to_two": BUFFERS,
        "by_subprogram": ("third",),
    }


def test_a_relocation_of_a_symbol_that_is_not_there_is_refused() -> None:
    # The upper half of r_info is the symbol's number.
    lying = damaged(".relraw_tp/sys_enter", 12, "=I", 1000)

    with pytest.raises(
        FormatError,
        match=r"parse damaged.bpf.o: section .relraw_tp/sys_enter at offset 0x[0-9a-f]+: "
        r"it names symbol 1000, and there are 14",
    ):
        read_perf_buffers(lying, BUFFERS, PROGRAMS)


@pytest.mark.parametrize(
    ("offset", "layout", "number", "cause"),
    [
        (32, "=Q", 63, "63 bytes are no whole relocations of 16"),  # sh_size
        (40, "=I", 99, "its symbols are in section 99, which is not there"),  # sh_link
    ],
)
def test_a_table_of_relocations_that_lies_is_refused(
    offset: int, layout: str, number: int, cause: str
) -> None:
    data = bytearray(compile_bpf(SOURCE))
    [index] = [
        index
        for index, section in enumerate(Elf.parse(bytes(data)).sections)
        if section.name == ".relraw_tp/sys_enter"
    ]
    (headers,) = struct.unpack_from("=Q", data, 40)  # e_shoff
    struct.pack_into(layout, data, headers + 64 * index + offset, number)

    with pytest.raises(FormatError, match=cause):
        read_perf_buffers(Elf.parse(bytes(data)), BUFFERS, PROGRAMS)
