from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kerneltrace_core
from harness.bpf_source import compile_bpf
from harness.btf_encoder import BtfWriter
from harness.c_types import STRUCTS, bpf_source
from kerneltrace_core.btf.format import parse_btf
from kerneltrace_core.btf.layout import ObjectLayout
from kerneltrace_core.codegen import generate, map_types, names
from kerneltrace_core.codegen.__main__ import main
from kerneltrace_core.codegen.module import IMPORTS, TYPES
from kerneltrace_core.errors import EventLayoutError, FormatError, OptionError
from kerneltrace_core.events import naming
from kerneltrace_core.events.binding import bind
from kerneltrace_core.events.classes import event_class
from kerneltrace_core.maps import opening
from unit.test_btf_object import SOURCE

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="BPF objects are compiled on Linux"
)

ROOT = Path(kerneltrace_core.__file__).parents[1]
TAGGED = """
#include <kerneltrace/kt_event.h>
enum verdict { PASS, DROP = 7, None = 9, __LAST };
struct flow { __be32 from; __be16 port; };
struct open_event { struct kt_header header; struct flow flow; enum verdict verdict;
    __s32 fd : 10; char path[16]; __u32 __pad; __u64 class; };
struct { __uint(type, BPF_MAP_TYPE_LRU_HASH); __uint(max_entries, 8); __type(key, struct flow);
    __type(value, __u64); } flows SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 8); __type(key, __u32);
    __type(value, enum verdict); } verdicts SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PERCPU_HASH); __uint(max_entries, 8); __type(key, char[16]);
    __type(value, struct flow); } by_name SEC(".maps");
union both { __u64 whole; __u32 half[2]; };
struct { __uint(type, BPF_MAP_TYPE_QUEUE); __uint(max_entries, 8);
    __type(value, union both); } choices SEC(".maps");
const volatile __u32 limit = 5;
_Bool enabled;
enum verdict last;
KT_EVENT(open_event, 3);
KT_PROBE(trace_open);
SEC("raw_tp") int trace_open(void *ctx)
{ static volatile int runs; runs++; enabled = limit; last = PASS; return 0; }
"""


def layout_of(source: str) -> ObjectLayout:
    return ObjectLayout.from_elf(compile_bpf(source), "probe.bpf.o")


def module_of(source: str, name: str = "probe.bpf.o") -> ModuleType:
    """Import what is generated for a source."""
    text = generate(layout_of(source), name)
    module = ModuleType(f"generated_{abs(hash(source))}")
    sys.modules[module.__name__] = module
    exec(compile(text, f"<generated from {name}>", "exec"), module.__dict__)
    return module


def test_an_object_with_our_header_becomes_its_events_and_what_they_are_made_of() -> None:
    text = generate(layout_of(TAGGED), "probe.bpf.o")

    expected = '''
    class Verdict(IntEnum):
        """enum verdict; a number that has no name here stays an int."""

        PASS = 0
        DROP = 7
        None_ = 9
        LAST = 10


    @kernel_event("kt_header")
    class KtHeader(KernelEvent):
        """struct kt_header, 24 bytes."""

        type: u16
        size: u16
        cpu: u32
        time_ns: u64
        request: u64


    @kernel_event("flow")
    class Flow(KernelEvent):
        """struct flow, 8 bytes."""

        from_: be32
        port: be16


    @kernel_event("open_event")
    class OpenEvent(KernelEvent):
        """struct open_event, 72 bytes, tag 3."""

        header: KtHeader
        flow: Flow
        verdict: Verdict
        fd: s32
        path: Annotated[str, Chars(16)]
        class_: u64


    @kernel_event("both")
    class Both(KernelEvent):
        """union both, 8 bytes."""

        whole: u64
        half: Annotated[tuple[int, ...], Array(u32, 2)]


    class BothFields(TypedDict, total=False):
        """What both can be written from."""

        whole: int
        half: Sequence[int]


    class FlowFields(TypedDict):
        """What flow can be written from."""

        from_: int
        port: int
    '''
    assert textwrap.dedent(expected).strip() in text
    # What our header brings is the session's business.
    assert "kt_counters" not in text.lower()
    assert 'Literal["by_name", "choices", "flows", "verdicts"]' in text


def test_the_same_object_gives_the_same_text_without_dates_and_paths(tmp_path: Path) -> None:
    texts = set()
    for seed, folder in (("1", "a"), ("2", "b")):
        path = tmp_path / folder / "probe.bpf.o"
        path.parent.mkdir()
        path.write_bytes(compile_bpf(TAGGED + f"/* {seed} */"))
        command = [sys.executable, "-m", "kerneltrace_core.codegen", str(path)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, capture_output=True, check=True, env=environment)
        texts.add(done.stdout)

    (text,) = texts
    assert b"probe.bpf.o" in text
    assert str(tmp_path).encode() not in text
    assert not re.search(rb"20\d\d", text)


def test_check_tells_a_fresh_file_from_a_stale_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe, output = tmp_path / "probe.bpf.o", tmp_path / "events.py"
    probe.write_bytes(compile_bpf(TAGGED))
    arguments = [str(probe), "-o", str(output)]

    assert main([*arguments, "--check"]) == 1, "there is no file yet"
    assert not output.exists()
    capsys.readouterr()
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    assert capsys.readouterr().out == ""
    written = output.read_text()

    probe.write_bytes(compile_bpf(TAGGED.replace("char path[16]", "char path[32]")))
    assert main([*arguments, "--check"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [f"--- {output}", "+++ generated from probe.bpf.o"]
    assert "-    path: Annotated[str, Chars(16)]" in shown
    assert "+    path: Annotated[str, Chars(32)]" in shown
    assert output.read_text() == written, "--check writes nothing"
    output.write_bytes(b"\xff\xfe")
    assert main([*arguments, "--check"]) == 1, "it is no text"


def test_the_command_says_what_it_could_not_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.bpf.o"
    broken.write_bytes(compile_bpf(TAGGED)[:1000])

    assert main([str(broken)]) == 2
    assert main([str(tmp_path / "absent.bpf.o")]) == 2
    assert main([str(broken), "-o", str(tmp_path / "x.py"), "--check"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"codegen: parse {broken}: ")
    assert "section headers at offset" in told[0]
    assert told[1] == f"codegen: read {tmp_path}/absent.bpf.o: No such file or directory"
    with pytest.raises(SystemExit, match="2"):
        main([str(broken), "--check"])

    broken.write_bytes(compile_bpf(TAGGED))
    capsys.readouterr()
    assert main([str(broken), "-o", str(tmp_path / "none" / "x.py")]) == 2
    assert main([str(broken), "-o", str(tmp_path), "--check"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"codegen: write {tmp_path}/none/x.py: No such file or directory",
        f"codegen: check {tmp_path}: Is a directory",
    ]


def test_more_structs_can_be_asked_for() -> None:
    source = "struct point { int x; int y; }; int f(struct point *p) { return p->x; }"
    layout = layout_of(source)

    assert "class Point" not in generate(layout, "probe.bpf.o")
    assert "class Point(KernelEvent)" in generate(layout, "probe.bpf.o", ["point"])
    with pytest.raises(OptionError, match=r"--struct line: .* \(it has: point\)"):
        generate(layout, "probe.bpf.o", ["line"])


def test_the_types_of_events_are_found_by_pointers_where_nothing_is_tagged() -> None:
    source = "struct rec { int x; }; const struct rec *unused; struct other { int y; };"

    text = generate(layout_of(source), "probe.bpf.o")

    assert "class Rec(KernelEvent)" in text
    assert "class Other" not in text


CLASSES = module_of(bpf_source()) if sys.platform.startswith("linux") else ModuleType("none")
TYPES_LAYOUT = layout_of(bpf_source()) if sys.platform.startswith("linux") else None


@pytest.mark.parametrize("struct", [name for name in STRUCTS if name != "empty"])
@settings(max_examples=20)
@given(data=st.data())
def test_a_generated_class_reads_what_the_class_from_btf_reads(
    struct: str, data: st.DataObject
) -> None:
    assert TYPES_LAYOUT is not None
    layout = TYPES_LAYOUT.structs[struct]
    declared: Any = getattr(CLASSES, names.class_name(struct))
    record = data.draw(st.binary(min_size=layout.size, max_size=layout.size))

    bound: Any = bind(declared, TYPES_LAYOUT).cls
    ours = bound.from_bytes(record)
    theirs = event_class(layout).from_bytes(record)

    assert issubclass(bound, declared)
    assert list(ours.as_dict()) == list(theirs.as_dict())
    assert repr(ours.as_dict()) == repr(theirs.as_dict())


MACS = """
struct seen { unsigned char mac[6]; unsigned char pair[2][3]; unsigned char rest[]; };
const struct seen *unused __attribute__((unused));
"""


def test_generated_bytes_have_their_number_and_another_is_a_difference() -> None:
    text = generate(layout_of(MACS), "macs.bpf.o")
    assert "    mac: Annotated[bytes, Bytes(6)]\n" in text
    assert "    pair: Annotated[tuple[bytes, ...], Array(Bytes(3), 2)]\n" in text
    assert "    rest: Annotated[bytes, Bytes(0)]\n" in text

    made = module_of(MACS, "macs.bpf.o").Seen
    event: Any = bind(made, layout_of(MACS)).cls.from_bytes(bytes(range(14)))
    assert (event.mac, event.rest) == (b"\0\1\2\3\4\5", b"\x0c\x0d")
    assert event.pair == (b"\6\7\x08", b"\x09\x0a\x0b")
    with pytest.raises(EventLayoutError, match=r"mac +0 +6 bytes +unsigned char\[8\]: 8 bytes"):
        bind(made, layout_of(MACS.replace("mac[6]", "mac[8]")))


def test_a_field_that_python_would_rename_is_left_out() -> None:
    source = "struct rec { int __hidden; int shown; int __pad; }; const struct rec *unused;"
    layout = layout_of(source)
    declared: Any = module_of(source).Rec

    event: Any = bind(declared, layout).cls.from_bytes(bytes(range(12)))

    assert event.as_dict() == {"shown": int.from_bytes(bytes(range(4, 8)), sys.byteorder)}
    assert '@kernel_event("rec", partial=True)' in generate(layout, "probe.bpf.o")
    only_padding = "struct rec { int shown; int __pad; }; const struct rec *unused;"
    assert '@kernel_event("rec")' in generate(layout_of(only_padding), "probe.bpf.o")


def test_maps_and_variables_are_reached_by_their_names() -> None:
    module = module_of(TAGGED)
    session = SimpleNamespace(
        maps={"flows": "F", "verdicts": "V", "by_name": "N"},
        variables={"limit": 5, "enabled": False, "last": 0, "trace_open.runs": 3},
    )

    maps, variables = module.ProbeMaps(session), module.ProbeVariables(session)
    variables.enabled = True

    assert (maps.flows, maps.verdicts, maps.by_name) == ("F", "V", "N")
    assert (variables.limit, variables.trace_open_runs) == (5, 3)
    assert session.variables["enabled"] is True
    with pytest.raises(AttributeError):
        variables.limit = 6
    assert module.ProbePrograms.trace_open == "trace_open"


def test_the_session_takes_its_options_by_name() -> None:
    module = module_of(TAGGED)

    session = module.ProbeSession(
        b"object", variables={"limit": 6}, map_sizes={"flows": 9}, queue_size=7
    )

    assert dict(session.options.variables) == {"limit": 6}
    assert dict(session.options.map_sizes) == {"flows": 9}
    assert (session.options.programs, session.options.queue_size) == (None, 7)
    assert isinstance(session.typed_maps, module.ProbeMaps)


def test_names_are_those_of_classes_made_at_run_time() -> None:
    examples = ["open_event", "class", "None", "2fast", "__x__", "_", "", "as_dict", "origin"]

    assert names.TAKEN_IN_EVENTS == naming.TAKEN
    for name in examples:
        assert names.field_name(name) == naming.field_name(name)
        assert names.class_name(name) == naming.class_name(name)


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (names.attribute_name, "trace_open.runs", "trace_open_runs"),
        (names.attribute_name, "__private", "private"),
        (names.attribute_name, "class", "class_"),
        (names.attribute_name, "property", "property_"),
        (names.attribute_name, "__", "_"),
        (names.member_name, "__MAX", "MAX"),
        (names.member_name, "_sunder_", "sunder"),
        (names.member_name, "mro", "mro_"),
        (names.member_name, "real", "real_"),
        (names.member_name, "name", "name_"),
        (names.member_name, "_", "N"),
        (names.member_name, "True", "True_"),
        (names.module_class_name, "my-probe.v2.bpf.o", "MyProbe"),
        (names.module_class_name, "2.bpf.o", "_2"),
    ],
)
def test_a_name_that_python_would_not_take_is_changed(
    function: Any, name: str, expected: str
) -> None:
    assert function(name) == expected


def test_each_name_is_given_once() -> None:
    taken = names.Names({"Session"})

    claimed = [taken.claim(each) for each in ("Session", "Open", "Open", "class")]
    assert claimed == ["Session_", "Open", "Open_", "class_"]


EVIL = "x: int = print()"


@pytest.mark.parametrize("place", ["struct", "field", "enum", "value", "variable", "typedef"])
def test_a_name_that_no_c_compiler_gives_is_refused(place: str) -> None:
    called = dict.fromkeys(("struct", "field", "enum", "value", "variable"), "fine") | {place: EVIL}
    writer = BtfWriter()
    number = writer.enum(called["enum"], 4, [(called["value"], 1)], signed=False)
    struct = writer.structure(called["struct"], 4, [(called["field"], number, 0, 0)])
    if place == "typedef":
        bare = writer.structure("", 4, [("fine", number, 0, 0)])
        struct = writer.add("typedef", EVIL, bare)
    variable = writer.add("var", called["variable"], struct, 1)
    writer.datasec(".bss", [(variable, 0, 4)])
    layout = ObjectLayout.from_btf(parse_btf(writer.blob()))

    with pytest.raises(FormatError, match=r"write Python for 'x: int = print\(\)'"):
        generate(layout, "probe.bpf.o")


def test_the_name_of_a_file_stays_within_its_text() -> None:
    text = generate(layout_of("int a;"), 'a"""\nimport os\n"""\\.bpf.o')

    assert text.splitlines()[0].startswith('"""Events, maps and variables of a____import_os____')
    compile(text, "generated", "exec")


def test_maps_have_the_classes_that_are_opened() -> None:
    opened = {int(number): cls.__name__ for number, cls in opening.CLASSES.items()}

    assert {number: row[0] for number, row in map_types.CLASSES.items()} == opened


def test_what_generated_modules_import_is_there_and_public() -> None:
    for module, wanted in [*IMPORTS.items(), *TYPES.items()]:
        stub = ROOT.joinpath(*module.split(".")).with_suffix(".pyi")
        if stub.exists():  # of what no package has at run time
            assert not [each for each in wanted if f"class {each}(" not in stub.read_text()]
        else:
            found = importlib.import_module(module)
            assert not set(wanted) - set(found.__all__)
            assert not [each for each in wanted if not hasattr(found, each)]


HIDING = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct point { int x; };
struct hiding { unsigned char bytes[4]; unsigned char raw[4]; unsigned u32; unsigned next;
    struct point Point; struct point other; char str[4]; char text[4]; };
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8); __type(key, char[8]);
    __type(value, struct hiding); } HashMap SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8); __type(key, char[8]);
    __type(value, int); } str SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8); __type(key, char[8]);
    __type(value, int); } property SEC(".maps");
int int_; char str_[4]; char text[4]; struct session { int a; } session;
"""

USES = """
from __future__ import annotations

from object_generated import ObjectSession, ObjectPrograms
from probe_generated import ProbePrograms, ProbeSession, OpenEvent, Verdict


def right(session: ProbeSession) -> None:
    for event in session.events(OpenEvent):
        fd: int = event.fd
        path: str = event.path + str(event.header.time_ns) + hex(event.flow.from_)
        taken: bool = event.verdict is Verdict.PASS
    count: int = session.typed_maps.flows[{"from_": 1, "port": 2}]
    for flow, count in session.typed_maps.flows.items():
        port: int = flow.port + session.typed_maps.flows[flow]
    ports: list[int] = [each.port for each in session.typed_maps.by_name["x"]]
    session.typed_maps.verdicts[3] = Verdict.DROP
    session.typed_maps.choices.push({"whole": 3})
    session.typed_variables.enabled = session.typed_variables.limit > 4
    ProbeSession("probe.bpf.o", variables={"limit": 3, "trace_open.runs": 1})
    ProbeSession("probe.bpf.o", programs=[ProbePrograms.trace_open], map_sizes={"flows": 9})


def wrong(session: ProbeSession) -> None:
    session.typed_maps.flow  # wrong
    session.typed_maps.flows[7]  # wrong
    session.typed_maps.flows[{"from_": 1}]  # wrong
    session.typed_maps.flows[{"from_": 1, "port": "x"}]  # wrong
    session.typed_maps.flows[{"from_": 1, "port": 2}] = "x"  # wrong
    session.typed_maps.verdicts["x"]  # wrong
    session.typed_maps.by_name[b"x"]  # wrong
    session.typed_variables.limit = 6  # wrong
    session.typed_variables.enabled = "x"  # wrong
    session.typed_variables.absent  # wrong
    ProbeSession("x", variables={"limits": 3})  # wrong
    ProbeSession("x", variables={"limit": "x"})  # wrong
    ProbeSession("x", programs=["trace_close"])  # wrong
    ProbeSession("x", map_sizes={"flow": 9})  # wrong
    ProbePrograms.trace_close  # wrong
    for event in session.events(OpenEvent):
        event.file  # wrong
        event.path + 1  # wrong


def other(session: ObjectSession) -> None:
    session.typed_maps.by_key[{"pid": 1, "inode": 2}] = {"calls": 1, "errors": 2, "last": 3}
    total: int = session.typed_maps.totals.sum(0)
    text: str = session.typed_maps.waiting.pop()
    ObjectPrograms.on_switch
    session.typed_maps.by_key[(1, 2)]  # wrong
    session.typed_variables.start = session.typed_variables.start  # wrong
    session.typed_maps.waiting.push(3)  # wrong
    session.typed_maps.totals["x"]  # wrong
"""


@pytest.mark.deadline(300)
def test_a_wrong_name_or_type_is_an_error_of_mypy_and_what_is_right_is_none(
    tmp_path: Path,
) -> None:
    sources = {"probe": TAGGED, "object": SOURCE, "types": bpf_source(), "hiding": HIDING}
    for name, source in sources.items():
        path = tmp_path / f"{name}_generated.py"
        path.write_text(generate(layout_of(source), f"{name}.bpf.o"))
    (tmp_path / "uses.py").write_text(USES)
    environment = dict(os.environ)
    if "site-packages" not in ROOT.parts:
        environment["MYPYPATH"] = str(ROOT)

    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent",
            "--no-error-summary", "--hide-error-context", "--no-pretty", ".",
        ],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    found = re.findall(r"^(\S+?):(\d+): error: ", done.stdout, re.MULTILINE)
    expected = [
        ("uses.py", str(number))
        for number, line in enumerate(USES.splitlines(), 1)
        if line.endswith("  # wrong")
    ]
    assert sorted(found) == sorted(expected), done.stdout + done.stderr
    assert len(expected) == 21
