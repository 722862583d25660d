from __future__ import annotations

import itertools
import sys

import pytest

from harness.bpf_source import compile_bpf
from harness.btf_encoder import BtfWriter, ElfSection, ElfSymbol, write_elf
from kerneltrace_core.btf.elf import Elf
from kerneltrace_core.btf.format import parse_btf
from kerneltrace_core.btf.layout import (
    ArrayLayout,
    EventTag,
    MapLayout,
    ObjectLayout,
    ProgramLayout,
    Scalar,
)
from kerneltrace_core.btf.placed import place_variables
from kerneltrace_core.errors import FormatError

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="BPF objects are compiled on Linux"
)

SOURCE = r"""
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct key { __u32 pid; __u64 inode; };
struct count { __u64 calls; __u32 errors; __u32 last; };

struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 1000); __type(key, struct key);
         __type(value, struct count); __uint(map_flags, BPF_F_NO_PREALLOC); } by_key SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 64); __type(key, int);
         __type(value, const volatile __u64); } totals SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 1 << 18); } events SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_STACK_TRACE); __uint(max_entries, 16);
         __uint(key_size, 4); __uint(value_size, 127 * 8); } stacks SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_QUEUE); __uint(max_entries, 8);
         __type(value, char[16]); } waiting SEC(".maps");
struct inner_map { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4); __type(key, __u32);
         __type(value, __be32[2]); } first SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_HASH_OF_MAPS); __uint(max_entries, 32); __type(key, __u32);
         __array(values, struct inner_map); } by_process SEC(".maps") = { .values = { &first } };
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 2); __uint(key_size, 4);
         __array(values, int(void *)); } next SEC(".maps");
typedef struct { __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY); __type(key, int);
         __type(value, __u32); } perf_t;
perf_t perf SEC(".maps");

const volatile __u32 sample_rate = 0x11111111;
const volatile char prefix[8] = "abc";
const volatile __u64 unset;
__u32 failed = 0x22222222;
struct count start = { 0x3333333333333333, 0x44444444, 0x55555555 };
__u64 seen;
__u8 raw[5];
static volatile __s16 hidden = 0x6666;
int extra SEC(".data.extra") = 0x77777777;
const volatile int fixed SEC(".rodata.fixed") = 0x12345678;
int unmapped SEC(".bss.extra");
char LICENSE[] SEC("license") = "GPL";
extern int LINUX_KERNEL_VERSION __kconfig;

static __noinline int shared(void *ctx) { seen += hidden; return failed; }
__noinline int global_function(__u32 a) { return a + LINUX_KERNEL_VERSION; }

SEC("tp/sched/sched_switch") int on_switch(void *ctx) { return shared(ctx) + global_function(1); }
SEC("tp/sched/sched_switch") int on_switch_too(void *ctx) { raw[0]++; return extra + fixed; }
SEC("?kprobe/vfs_read") int on_read(void *ctx)
{ bpf_printk("read %d", unmapped); return unset + sample_rate + prefix[0] + start.errors; }
SEC("raw_tp") int on_raw(void *ctx) { bpf_map_push_elem(&waiting, &raw, 0); return 0; }
"""


def compiled() -> ObjectLayout:
    return ObjectLayout.from_elf(compile_bpf(SOURCE), "object.bpf.o")


INT, U32 = Scalar(4, True, "int", name="int"), Scalar(4, False, "int", name="__u32")
U64 = Scalar(8, False, "int", name="__u64")


def test_maps_have_the_types_and_sizes_of_their_definitions() -> None:
    layout = compiled()
    key, count = layout.structs["key"], layout.structs["count"]
    char16 = ArrayLayout(Scalar(1, True, "char", name="char"), 16)
    pair = ArrayLayout(Scalar(4, False, "int", True, "__be32"), 2)

    assert dict(layout.maps) == {
        "by_key": MapLayout("by_key", 1, 1000, key, count, 16, 16, flags=1),
        "totals": MapLayout("totals", 6, 64, INT, U64, 4, 8),
        "events": MapLayout("events", 27, 1 << 18, None, None, 0, 0),
        "stacks": MapLayout("stacks", 7, 16, None, None, 4, 1016),
        "waiting": MapLayout("waiting", 22, 8, None, char16, 0, 16),
        "first": MapLayout("first", 2, 4, U32, pair, 4, 8),
        "by_process": MapLayout(
            "by_process", 13, 32, U32, None, 4, 4,
            MapLayout("by_process.inner", 2, 4, U32, pair, 4, 8),
        ),
        "next": MapLayout("next", 3, 2, None, None, 4, 4),
        "perf": MapLayout("perf", 4, 0, INT, U32, 4, 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "section", "size", "writable", "initial"),
    [
        ("sample_rate", ".rodata", 4, False, "11" * 4),
        ("prefix", ".rodata", 8, False, b"abc".hex() + "00" * 5),
        ("unset", ".rodata", 8, False, "00" * 8),
        ("fixed", ".rodata.fixed", 4, False, "78563412"),
        ("failed", ".data", 4, True, "22" * 4),
        ("start", ".data", 16, True, "33" * 8 + "44" * 4 + "55" * 4),
        ("hidden", ".data", 2, True, "6666"),
        ("extra", ".data.extra", 4, True, "77" * 4),
        ("seen", ".bss", 8, True, None),
        ("raw", ".bss", 5, True, None),
    ],
)
def test_a_variable_is_where_the_file_has_its_initial_value(
    name: str, section: str, size: int, writable: bool, initial: str | None
) -> None:
    variable = compiled().variables[name]

    assert (variable.name, variable.section) == (name, section)
    assert (variable.size, variable.type.size, variable.writable) == (size, size, writable)
    if initial is not None:
        place = Elf.parse(compile_bpf(SOURCE)).section(section)
        assert place is not None
        data = place.data[variable.offset : variable.offset + size]
        wanted = bytes.fromhex(initial)
        # All but this one are the same from either end.
        assert data == (wanted[::-1] if name == "fixed" and sys.byteorder == "big" else wanted)


def test_variables_are_those_of_data_sections_and_do_not_overlap() -> None:
    variables = compiled().variables

    assert len(variables) == 10
    assert "LICENSE" not in variables
    assert "LINUX_KERNEL_VERSION" not in variables
    assert "unmapped" not in variables, "libbpf makes no map of .bss.extra"
    assert "on_read.____fmt" not in variables, "the text of bpf_printk is no variable"
    places = sorted((each.section, each.offset, each.size) for each in variables.values())
    for (section, offset, size), (next_section, next_offset, _) in itertools.pairwise(places):
        assert section != next_section or offset + size <= next_offset


def test_programs_are_the_global_functions_of_their_sections() -> None:
    assert dict(compiled().programs) == {
        "on_switch": ProgramLayout("on_switch", "tp/sched/sched_switch"),
        "on_switch_too": ProgramLayout("on_switch_too", "tp/sched/sched_switch"),
        "on_read": ProgramLayout("on_read", "?kprobe/vfs_read"),
        "on_raw": ProgramLayout("on_raw", "raw_tp"),
    }


def test_an_object_with_dwarf_reads_the_same() -> None:
    with_dwarf = ObjectLayout.from_elf(compile_bpf(SOURCE, "-keep-dwarf"))

    assert with_dwarf.maps == compiled().maps
    assert with_dwarf.variables == compiled().variables
    assert with_dwarf.programs == compiled().programs


def test_an_object_without_our_header_has_no_events_and_no_probes() -> None:
    assert dict(compiled().events) == {}
    assert dict(compiled().probes) == {}


def test_an_object_without_btf_is_refused_with_the_remedy() -> None:
    with pytest.raises(FormatError, match=r"read x\.bpf\.o: it has no section \.BTF \(compile it"):
        ObjectLayout.from_elf(write_elf([ElfSection("tp/x", b"code", flags=4)]), "x.bpf.o")


class MapWriter(BtfWriter):
    """Write a map definition member by member."""

    def __init__(self) -> None:
        super().__init__()
        self.number = self.integer("int", 4, 1)

    def uint(self, value: int) -> int:
        return self.add("ptr", "", self.add("array", "", 0, self.number, self.number, value))

    def defined(self, members: dict[str, int]) -> MapLayout:
        rows = [(name, type_id, 64 * at, 0) for at, (name, type_id) in enumerate(members.items())]
        struct = self.structure("", 8 * len(rows), rows, flag=0)
        variable = self.add("var", "m", struct, 1)
        self.datasec(".maps", [(variable, 0, 8 * len(rows))])
        return ObjectLayout.from_btf(parse_btf(self.blob(), "x.bpf.o")).maps["m"]


def test_a_number_may_be_given_as_an_enum() -> None:
    writer = MapWriter()
    entries = writer.enum64("", [("__unique_value0", 2**33)], signed=False)

    layout = writer.defined({"type": writer.uint(1), "max_entries": entries})

    assert (layout.type, layout.max_entries) == (1, 2**33)


@pytest.mark.parametrize(
    ("member", "cause"),
    [
        ("max_entries", r"its max_entries is not declared by __uint\(\)"),
        ("key", r"its key is not declared by __type\(\)"),
        ("values", "its values are no array of pointers"),
    ],
)
def test_a_malformed_map_definition_is_refused(member: str, cause: str) -> None:
    writer = MapWriter()
    with pytest.raises(FormatError, match=rf"read BTF of x\.bpf\.o: map m: {cause}"):
        writer.defined({member: writer.number})


def test_a_map_that_holds_maps_that_hold_it_is_refused() -> None:
    writer = MapWriter()
    # int, array, ptr, struct: the struct's values are pointers to itself.
    array = writer.add("array", "", 0, 3, writer.number, 0)
    pointer = writer.add("ptr", "", 4)
    assert (array, pointer) == (2, 3)
    with pytest.raises(FormatError, match="map m: a map of maps of maps does not exist"):
        writer.defined({"values": array})


def test_a_map_that_is_no_struct_is_refused() -> None:
    writer = BtfWriter()
    variable = writer.add("var", "m", writer.integer("int", 4), 1)
    writer.datasec(".maps", [(variable, 0, 4)])
    with pytest.raises(FormatError, match=r"map m in section \.maps is no struct"):
        ObjectLayout.from_btf(parse_btf(writer.blob()))


def variable_object(linkage: int, offset: int, symbol: int, size: int = 4) -> ObjectLayout:
    writer = BtfWriter()
    variable = writer.add("var", "count", writer.integer("int", 4, 1), linkage)
    writer.datasec(".data", [(variable, offset, size)])
    return ObjectLayout.from_elf(
        write_elf(
            [ElfSection(".data", bytes(16), flags=3), ElfSection(".BTF", writer.blob())],
            [ElfSymbol("count", symbol, 4, kind=1, binding=linkage)],
        ),
        "x.bpf.o",
    )


def test_a_global_variable_is_at_its_symbol_and_a_static_one_where_btf_says() -> None:
    assert variable_object(linkage=1, offset=0, symbol=8).variables["count"].offset == 8
    assert variable_object(linkage=0, offset=4, symbol=8).variables["count"].offset == 4


def test_of_a_static_and_a_global_variable_of_one_name_the_global_one_is_meant() -> None:
    writer = BtfWriter()
    number = writer.integer("int", 4, 1)
    outer = writer.add("var", "count", number, 1)
    inner = writer.add("var", "count", number, 0)
    writer.datasec(".data", [(outer, 0, 4), (inner, 4, 4)])
    sections = [ElfSection(".data", bytes(16), flags=3), ElfSection(".BTF", writer.blob())]

    placed = place_variables(
        parse_btf(writer.blob()), Elf.parse(write_elf(sections, [ElfSymbol("count", 8, 4, kind=1)]))
    )
    layout = ObjectLayout.from_elf(write_elf(sections, [ElfSymbol("count", 8, 4, kind=1)]))

    assert [each.offset for each in placed] == [4, 8]
    assert layout.variables["count"].offset == 8


def test_a_variable_outside_of_its_section_is_refused() -> None:
    with pytest.raises(
        FormatError,
        match=r"variable count ends at 0x12 of section \.data \(at offset 0x40 of the file\), "
        "which has 0x10 bytes",
    ):
        variable_object(linkage=1, offset=0, symbol=14)


def test_a_variable_smaller_than_its_type_is_refused() -> None:
    with pytest.raises(FormatError, match=r"variable count of section \.data has 2 bytes, its ty"):
        variable_object(linkage=1, offset=0, symbol=0, size=2)


HEADER = "#include <kerneltrace/kt_event.h>\n"
OPEN = "struct open_event { struct kt_header header; int fd; };"


def tagged(*lines: str) -> ObjectLayout:
    return ObjectLayout.from_elf(compile_bpf(HEADER + "\n".join(lines)), "x.bpf.o")


def test_events_and_probes_are_read_from_what_our_header_leaves() -> None:
    layout = tagged(
        OPEN,
        "KT_EVENT(open_event, 1);",
        "struct close_event { struct kt_header header; __u64 ns; };",
        "#define CLOSE 65535",
        "KT_EVENT(close_event, CLOSE);",
        "struct exit_event { struct kt_header header; };",
        "KT_EVENT(exit_event, 0x10);",
        "KT_PROBE(trace_open);",
        "KT_PROBE_AT(trace_close, 63);",
        "int kt_events_seen;",
    )

    assert dict(layout.events) == {
        "open_event": EventTag("open_event", 1, 0, 2),
        "close_event": EventTag("close_event", 65535, 0, 2),
        "exit_event": EventTag("exit_event", 16, 0, 2),
    }
    assert dict(layout.probes) == {"trace_open": 0, "trace_close": 63}
    assert [field.name for field in layout.structs["open_event"].fields()] == ["header", "fd"]
    # The marks are ours, not variables of the program.
    assert list(layout.variables) == ["kt_events_seen"]


BARE = """
#include <linux/types.h>
struct kt_header { __u16 type; __u16 size; __u32 cpu; __u64 time_ns; __u64 request; };
"""
OTHER = "struct other { struct kt_header header; } o;"


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (
            [OPEN, "const struct open_event *kt_event_1_open_event;",
             "const struct open_event *kt_event_2_open_event;"],
            "struct open_event has two event tags: 1 and 2",
        ),
        (
            [OPEN, OTHER, "const struct open_event *kt_event_1_open_event;",
             "const struct other *kt_event_1_other;"],
            "event tag 1 is given to both open_event and other",
        ),
        (
            ["const struct absent *kt_event_1_absent;"],
            "event absent with tag 1: there is no such struct",
        ),
        (
            ["struct bare { __u64 a; } one;", "const struct bare *kt_event_1_bare;"],
            "event bare with tag 1 does not begin with a struct kt_header",
        ),
        (
            [OPEN, "const struct open_event *kt_event_65536_open_event;"],
            "event tag 65536 of open_event does not fit 2 bytes",
        ),
        (
            [OPEN, "const struct open_event *kt_event_OPEN_open_event;"],
            r"the tag of event open_event is OPEN, which is no number \(KT_EVENT takes one",
        ),
        (["int kt_probe_64_late;"], "probe late has the index 64 of 64"),
        (["int kt_probe_5_a;", "int kt_probe_5_b;"], "probes a and b have one index, 5"),
    ],
)  # fmt: skip
def test_marks_that_contradict_each_other_are_refused(lines: list[str], cause: str) -> None:
    with pytest.raises(FormatError, match=cause):
        ObjectLayout.from_elf(compile_bpf(BARE + "\n".join(lines)), "x.bpf.o")


def test_a_variable_that_only_begins_like_a_mark_is_the_programs_own() -> None:
    layout = tagged("int kt_event_1_none;", "int kt_probe_x;")

    assert (dict(layout.events), dict(layout.probes)) == ({}, {})
    assert sorted(layout.variables) == ["kt_event_1_none", "kt_probe_x"]
