"""A session without a kernel: what users test their own code with, and what we test ours with."""

from __future__ import annotations

import asyncio
import os
import re
import select
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.bpf_source import compile_bpf
from kerneltrace_core import (
    AttachError,
    BtfTracepoint,
    ClosedError,
    EventLayoutError,
    Fentry,
    Filter,
    FormatError,
    KernelEvent,
    Kprobe,
    LoadError,
    MapFullError,
    MapKeyError,
    OptionError,
    Session,
    kernel_event,
    s64,
    u32,
)
from kerneltrace_core.testing import FakeSession, capture_events, record, replay

PAGE = Path(__file__).parents[2] / "docs" / "session.md"


def program_of(page: Path) -> str:
    """Return the program that a page introduces."""
    found = re.search(r"```c file=opens.bpf.c\n(.*?)```", page.read_text(), re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="session")
def data() -> bytes:
    """Return the object of the page that introduces sessions."""
    return compile_bpf(program_of(PAGE))


@pytest.fixture
def session(data: bytes) -> Iterator[FakeSession]:
    with FakeSession(data, name="opens") as opened:
        yield opened


def test_a_session_closes_while_readers_have_all_threads_of_the_event_loop(data: bytes) -> None:
    async def main() -> list[int]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        async with FakeSession(data) as session:
            reader = asyncio.ensure_future(
                asyncio.to_thread(session.process, lambda _: None, "open_event", timeout=10)
            )
            await asyncio.sleep(0.05)
            await asyncio.wait_for(session.aclose(), 5)
        return [await reader]

    assert asyncio.run(main()) == [0]


@pytest.mark.parametrize("size", [0, -5, True, 1.5, "x"])
def test_a_size_of_batches_that_is_no_number_is_refused(session: FakeSession, size: Any) -> None:
    with pytest.raises(OptionError, match=r"read batches: size .* is not events, 1 or more"):
        session.batches("open_event", size=size)


@pytest.mark.parametrize("timeout", [30 * 86_400, 1e300, 10**400])
def test_a_timeout_may_be_longer_than_the_kernel_counts(
    session: FakeSession, timeout: float
) -> None:
    with session.events("open_event", timeout=timeout) as events:
        threading.Timer(0.05, lambda: session.emit("open_event", result=3)).start()

        assert next(iter(events)).result == 3


def test_a_cancelled_scope_of_trio_closes_its_session(data: bytes) -> None:
    trio = pytest.importorskip("trio")
    session = FakeSession(data)

    async def main() -> None:
        with trio.move_on_after(0.05):
            async with session:
                await trio.sleep_forever()

    trio.run(main)

    assert session.closed


def test_an_emitted_event_arrives_with_its_fields_and_its_header(session: FakeSession) -> None:
    with session.events("open_event", timeout=5) as events:
        session.emit("open_event", result=-2, duration_ns=1500, comm="cat")
        event = next(iter(events))

    assert (event.result, event.duration_ns, event.comm) == (-2, 1500, "cat")
    assert (event.header.type, event.header.size, event.header.cpu) == (1, 56, 0)
    assert event.header.time_ns > 0


def test_an_event_loop_reads_the_same(session: FakeSession) -> None:
    async def read() -> list[int]:
        found = []
        async with session.events("open_event", timeout=5) as events:
            for number in range(3):
                session.emit("open_event", result=number)
            async for event in events:
                found.append(event.result)
                if len(found) == 3:
                    break
        return found

    assert asyncio.run(read()) == [0, 1, 2]


def test_every_stream_gets_every_event(session: FakeSession) -> None:
    with session.events("open_event", timeout=0) as one, session.raw(timeout=0) as two:
        session.emit("open_event", result=7)
        session.emit_bytes(b"\x09\x00 of no type that the object has")

        assert [event.result for event in one] == [7]
        assert len(list(two)) == 2
    assert session.stats().rings["events"].unknown == 1


def test_batches_are_columns(session: FakeSession) -> None:
    with session.batches("open_event", timeout=0) as batches:
        for number in range(100):
            session.emit("open_event", result=number)
        columns = next(iter(batches))

    assert len(columns) == 100
    assert list(columns["result"]) == list(range(100))


def test_a_callback_ends_the_stream_with_false(session: FakeSession) -> None:
    found: list[int] = []

    def take(event: Any) -> bool:
        found.append(event.result)
        return len(found) < 2

    with session.events("open_event", timeout=0):
        for number in range(5):
            session.emit("open_event", result=number)
        calls = session.process(take, "open_event", timeout=0)

    assert (calls, found) == (2, [0, 1])


def test_an_asynchronous_callback_is_awaited(session: FakeSession) -> None:
    found: list[int] = []

    async def take(event: Any) -> None:
        await asyncio.sleep(0)
        found.append(event.result)

    async def main() -> int:
        session.emit("open_event", result=4)
        return await session.aprocess(take, "open_event", timeout=0.05)

    assert (asyncio.run(main()), found) == (1, [4])


def test_variables_are_typed_and_those_of_rodata_are_frozen(data: bytes) -> None:
    with FakeSession(data, variables={"slower_than_ns": 12}) as session:
        session.variables["opens"] = 3

        assert dict(session.variables) == {"slower_than_ns": 12, "opens": 3}
        with pytest.raises(OptionError, match=r"set variable slower_than_ns: it is in \.rodata"):
            session.variables["slower_than_ns"] = 13
        with pytest.raises(OptionError, match="did you mean opens"):
            session.variables["open"]
        with pytest.raises(OptionError, match="set variable opens"):
            session.variables["opens"] = -1
        with pytest.raises(OptionError, match="belong to the object"):
            del session.variables["opens"]


def test_maps_hold_what_is_put_into_them(session: FakeSession) -> None:
    session.maps["begun"][4] = 5

    assert dict(session.maps["begun"]) == {4: 5}
    with pytest.raises(MapKeyError, match="did you mean begun"):
        session.maps["begon"]


def test_a_filter_is_checked_against_the_object(session: FakeSession) -> None:
    session.filter.set(Filter(pids=[7, 9]))

    assert session.filter.processes == {7, 9}
    with pytest.raises(OptionError, match="opened without it"):
        session.filter.set(Filter(pids=[7], follow_forks=True))


def test_probes_are_attached_and_detached_in_name(data: bytes) -> None:
    with FakeSession(data, [BtfTracepoint("sys_enter", program="on_enter")]) as session:
        [link] = session.links
        states = [link.attached]
        link.detach()
        states.append(link.attached)
        assert states == [True, False]
        with pytest.raises(
            AttachError, match=r"to program on_leave: ENOENT: .* has no program of that"
        ):
            session.attach(BtfTracepoint("sys_exit", program="on_leave"))


def test_automatic_probes_are_those_of_the_sections(data: bytes) -> None:
    with FakeSession(data, "auto") as session:
        found = {link.program: (str(link.spec), link.attached) for link in session.links}
        more = session.attach(BtfTracepoint("sys_exit"))

    assert found == {
        "on_enter": ("BTF tracepoint sys_enter", True),
        "on_exit": ("BTF tracepoint sys_exit", True),
    }
    assert (more.program, more.attached) == ("on_exit", False)
    with pytest.raises(ClosedError, match="attach BTF tracepoint sys_exit to program on_exit"):
        more.attach()


def test_a_probe_that_no_program_is_made_for_is_refused(session: FakeSession) -> None:
    with pytest.raises(AttachError, match="no program of object object is made for it"):
        session.attach(Kprobe("vfs_read"))
    with pytest.raises(AttachError, match="it is a tracing program"):
        session.attach(Kprobe("vfs_read", program="on_exit"))
    with pytest.raises(AttachError, match="something else than a fentry"):
        session.attach(Fentry("vfs_read", program="on_exit"))
    with pytest.raises(AttachError, match="did you mean on_exit"):
        session.attach(BtfTracepoint("sys_exit", program="on_exot"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"programs": ["on_leave"]}, "has no program on_leave"),
        ({"map_sizes": {"event": 4096}}, "has no map event"),
        ({"variables": {"open": 1}}, "did you mean opens"),
        ({"variables": {"opens": -1}}, "set variable opens"),
        ({"btf": "/does/not/exist"}, "Session option btf"),
        ({"filter": Filter(pids=range(1, 5000))}, "map kt_filter_tgids has room"),
    ],
)
def test_options_are_checked_against_the_object(
    data: bytes, options: dict[str, Any], told: str
) -> None:
    session = FakeSession(data, **options)

    with pytest.raises(OptionError, match=told):
        session.open()
    assert session.closed


@pytest.mark.parametrize(("given", "taken"), [(1000, 4096), (4097, 8192), (8192, 8192)])
def test_a_ring_has_whole_pages(data: bytes, given: int, taken: int) -> None:
    def send() -> None:
        with FakeSession(data, map_sizes={"events": given}) as session:
            for sent[0] in range(1000):
                session.emit("open_event")

    sent = [0]
    with pytest.raises(OptionError, match="it is full"):
        send()

    assert sent[0] == taken // 64


@pytest.mark.parametrize(
    ("use", "told"),
    [
        (lambda it: it.attach("tp_btf/sys_enter"), "attach 'tp_btf/sys_enter': it is no probe"),
        (lambda it: it.attach(None), "attach None: it is no probe"),
        (lambda it: it.filter.set(3), "set filter: 3 is not a Filter"),
        (lambda it: it.variables[3], "variable 3: the object has no such variable"),
    ],
)
def test_what_is_of_a_wrong_kind_is_refused_by_name(
    session: FakeSession, use: Callable[[FakeSession], object], told: str
) -> None:
    with pytest.raises(OptionError, match=told):
        use(session)


def test_options_have_the_effect_that_they_have_in_the_kernel(data: bytes) -> None:
    whom = Filter(pids=[7], follow_forks=True)
    sizes = {"events": 4096, "begun": 2}
    with FakeSession(data, programs=["on_exit"], map_sizes=sizes, filter=whom) as session:
        assert session.filter.processes == {7}
        assert {link.program for link in session.links} == {
            *("kt_follow_free", "kt_follow_exit", "kt_follow_fork")
        }
        assert set(session.program_info()) == {"on_exit", *(each.program for each in session.links)}
        session.maps["begun"].update({1: 1, 2: 2})
        with pytest.raises(MapFullError, match="max_entries is 2"):
            session.maps["begun"][3] = 3
        for _ in range(4096 // 64):
            session.emit("open_event")
        with pytest.raises(OptionError, match="it is full"):
            session.emit("open_event")


def test_variables_begin_as_the_source_says() -> None:
    source = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
const volatile __u64 limit = 1000;
__u32 pair[2] = {3, 4};
__u64 nothing;
SEC("raw_tp/sys_enter") int on_enter(void *ctx) { nothing += limit + pair[0]; return 0; }
char LICENSE[] SEC("license") = "GPL";
"""
    with FakeSession(compile_bpf(source)) as session:
        assert dict(session.variables) == {"limit": 1000, "pair": (3, 4), "nothing": 0}
        session.variables["pair"] = (5, 6)
        assert session.variables["pair"] == (5, 6)
    with FakeSession(compile_bpf(source), variables={"limit": 2}) as session:
        assert session.variables["limit"] == 2


def test_programs_are_described_and_have_not_run(session: FakeSession, data: bytes) -> None:
    info = session.program_info()

    assert {name: (each.type_name, each.run_count) for name, each in info.items()} == {
        "on_enter": ("tracing", 0),
        "on_exit": ("tracing", 0),
    }
    assert session.program_info() == info
    with FakeSession(data) as other:
        ids = {each.id for each in [*info.values(), *other.program_info().values()]}
    assert len(ids) == 4
    session.close()
    with pytest.raises(ClosedError, match="read program info of session opens"):
        session.program_info()


def test_the_trace_log_has_the_lines_that_are_put_into_it(session: FakeSession) -> None:
    session.emit_line("before")
    with session.trace_log(timeout=0) as log:
        session.emit_line("and after")
        first = list(log)
        assert list(log) == []
        with pytest.raises(OptionError, match="trace_log option timeout"):
            session.trace_log(timeout=-1)

    assert [line.text for line in first] == ["before", "and after"]
    assert {line.pid for line in first} == {os.getpid()}
    with pytest.raises(ClosedError, match="read trace log: it is closed"):
        iter(log)


@pytest.mark.parametrize("system", ["this one", "one without epoll"])
def test_who_waits_for_the_trace_log_is_woken(
    session: FakeSession, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system != "this one":
        monkeypatch.delattr(select, "epoll", raising=False)

    async def main() -> str:
        async with session.trace_log(timeout=20) as log:
            asyncio.get_running_loop().call_later(0.01, session.emit_line, "late")
            return (await anext(aiter(log))).text

    log = session.trace_log()
    lines = iter(log)
    threading.Timer(0.01, log.close).start()

    assert next(lines, None) is None
    assert asyncio.run(main()) == "late"


def test_the_trace_log_ends_with_its_session(session: FakeSession) -> None:
    log = session.trace_log()
    lines = iter(log)
    threading.Timer(0.01, session.close).start()

    assert next(lines, None) is None
    assert log.closed
    with pytest.raises(ClosedError, match="read trace log of session opens: it is closed"):
        session.trace_log()


def test_what_a_program_loses_is_among_the_statistics(session: FakeSession) -> None:
    session.lose("on_exit", 3)
    session.lose("on_exit")

    stats = session.stats()
    assert (stats.programs["on_exit"].seen, stats.programs["on_exit"].lost) == (4, 4)
    assert stats.lost == 4
    with pytest.raises(OptionError, match=r"lose records of on_leave: .*\(on_enter, on_exit do\)"):
        session.lose("on_leave")


def test_what_cannot_be_emitted_says_why(session: FakeSession) -> None:
    with pytest.raises(OptionError, match=r"no such struct \(did you mean open_event\?\)"):
        session.emit("opn_event")
    with pytest.raises(OptionError, match="emit open_event: field result: 'x' is no number"):
        session.emit("open_event", result="x")
    with pytest.raises(OptionError, match="emit record: 'x' is not bytes"):
        session.emit_bytes("x")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"no field colour \(it has header, result"):
        session.emit("open_event", colour=1)
    with pytest.raises(OptionError, match="emit to ring other: the object has events"):
        session.emit_bytes(b"", ring="other")

    def fill() -> None:
        for _ in range(10_000):
            session.emit("open_event")

    with pytest.raises(OptionError, match="it is full"):
        fill()


def test_nothing_can_be_used_before_opening_or_after_closing(data: bytes) -> None:
    session = FakeSession(data, name="mine")
    uses: list[Callable[[], Any]] = [
        lambda: session.events("open_event"),
        lambda: session.raw(),
        lambda: session.maps,
        lambda: session.variables,
        lambda: session.links,
        lambda: session.stats(),
        lambda: session.filter,
        lambda: session.rings,
        lambda: session.attach(BtfTracepoint("sys_exit")),
        lambda: session.program_info(),
    ]

    for use in uses:
        with pytest.raises(ClosedError, match="session mine: it has not been opened"):
            use()
    with session:
        variables, found, stream = session.variables, session.maps["begun"], session.raw()
    for use in uses:
        with pytest.raises(ClosedError, match="session mine: it is closed"):
            use()
    with pytest.raises(ClosedError):
        variables["opens"]
    with pytest.raises(ClosedError):
        found[1]
    assert list(stream) == []
    with pytest.raises(ClosedError, match="opened before"):
        session.open()
    session.close()
    assert session.closed


def test_a_forgotten_session_is_closed_where_warnings_are_errors(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda given: told.append(given.exc_type))
    session = FakeSession(data).open()
    parts = session._parts
    assert parts is not None

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del session

    assert told == [ResourceWarning]
    assert parts.streams["events"].ended


def test_an_unclosed_session_warns_and_is_closed(data: bytes) -> None:
    session = FakeSession(data, name="forgotten").open()

    with pytest.warns(ResourceWarning, match="unclosed <Session forgotten open>"):
        del session


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pumb": "thread"}, r"Session option pumb: there is no such option \(did you mean pump\?"),
        ({"pump": "both"}, r"Session option pump: 'both' is not one of 'inline', 'thread'"),
        ({"queue_size": 0}, "Session option queue_size: 0 is not a number of records"),
        ({"queue_size": True}, "Session option queue_size: True is not"),
        ({"overflow": "drop"}, "is not one of 'drop_oldest', 'drop_newest', 'block'"),
        ({"probes": ["sys_enter"]}, r"Session option probes: \['sys_enter'\] is not a list of"),
        ({"probes": "all"}, "Session option probes: 'all' is not"),
        ({"filter": 1}, "Session option filter: 1 is not a Filter"),
        ({"map_sizes": {"events": 0}}, "Session option map_sizes"),
        ({"variables": 3}, "Session option variables: 3 is not a mapping"),
        ({"spin_us": -1}, "Session option spin_us: -1 is not microseconds"),
        ({"name": ""}, "Session option name: '' is not a name"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_opened(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(OptionError, match=told):
        Session("x.bpf.o", **options)


@pytest.mark.parametrize("source", [None, 3, b"", ""])
def test_a_source_is_a_path_bytes_or_a_name(source: Any) -> None:
    with pytest.raises(OptionError, match="Session option object"):
        Session(source)


def test_options_are_frozen(data: bytes) -> None:
    session = FakeSession(data, variables={"opens": 1})

    with pytest.raises(AttributeError):
        session.options.pump = "thread"  # type: ignore[misc]
    with pytest.raises(TypeError):
        session.options.variables["opens"] = 2  # type: ignore[index]
    assert session.options.pump == "inline"


def test_an_object_that_is_not_there_or_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"read BPF object .*missing.bpf.o: No such file"):
        FakeSession(tmp_path / "missing.bpf.o").open()
    with pytest.raises(
        LoadError, match=r"none of that name \(a path has a slash or a dot: ./opens"
    ):
        FakeSession("opens").open()
    with pytest.raises(FormatError):
        FakeSession(b"no ELF").open()


def test_a_declared_class_that_does_not_fit_is_refused_with_a_table(session: FakeSession) -> None:
    @kernel_event("open_event", partial=True)
    class Wrong(KernelEvent):
        result: u32

    @kernel_event("open_event", partial=True)
    class Right(KernelEvent):
        result: s64

    with pytest.raises(EventLayoutError, match="result"):
        session.events(Wrong)
    with pytest.raises(EventLayoutError, match="result"):
        FakeSession(session.options.object, events=[Right, Wrong]).open()
    with pytest.raises(OptionError, match="Session option events"):
        FakeSession(session.options.object, events=[int])
    with session.events(Right, timeout=0) as events:
        session.emit("open_event", result=-5)
        assert [event.result for event in events] == [-5]


@pytest.mark.parametrize("timeout", [-1, "1", True])
def test_a_timeout_is_seconds(session: FakeSession, timeout: Any) -> None:
    with pytest.raises(OptionError, match="timeout"):
        session.events("open_event", timeout=timeout)


def test_captured_events_are_those_of_the_block(session: FakeSession) -> None:
    with capture_events(session, "open_event", settle=0.01) as events:
        for number in range(3):
            session.emit("open_event", result=number)

    assert [event.result for event in events] == [0, 1, 2]


def test_a_replay_gives_what_was_recorded(session: FakeSession, tmp_path: Path) -> None:
    path = tmp_path / "opens.recording"
    with record(session, path):
        for number in range(2000):
            session.emit("open_event", result=number, comm="rec")

    with replay(path) as again:
        assert again.rings == ("events",)
        found = list(again.events("open_event"))

    assert [event.result for event in found] == list(range(2000))
    assert {event.comm for event in found} == {"rec"}


def test_a_damaged_recording_is_refused(session: FakeSession, tmp_path: Path) -> None:
    path = tmp_path / "opens.recording"
    with record(session, path):
        session.emit("open_event")
    whole = path.read_bytes()

    (tmp_path / "none").write_bytes(b"something else")
    with pytest.raises(FormatError, match="it is none"):
        replay(tmp_path / "none")
    for end in (len(whole) - 1, len(whole) - 60, 40, 30):
        path.write_bytes(whole[:end])
        with pytest.raises(FormatError, match="it is damaged"):
            replay(path)


def test_neither_fakes_nor_replays_need_the_compiled_part(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(data)
    script = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("kerneltrace_core._native._"):
            raise ImportError("not built here")

sys.meta_path.insert(0, Blocked())
from kerneltrace_core import Filter
from kerneltrace_core.testing import FakeSession, capture_events, record, replay
path, whom = {str(tmp_path / "object")!r}, Filter(current_process=True)
with FakeSession(path, "auto", filter=whom) as session:
    with session.events("open_event", timeout=0) as events:
        session.emit("open_event", result=3)
        assert [event.result for event in events] == [3]
    session.maps["begun"][1] = 2
    assert session.variables["opens"] == 0
    assert len(session.links) == len(session.program_info()) == 2
    session.emit_line("printed")
    assert [line.text for line in session.trace_log(timeout=0)] == ["printed"]
    session.lose("on_exit")
    assert session.stats().lost == 1
    with capture_events(session, "open_event", settle=0) as events:
        session.emit("open_event", result=4)
    assert [event.result for event in events] == [4]
    with record(session, path + ".recording"):
        session.emit("open_event", result=5)
with replay(path + ".recording") as again:
    assert [event.result for event in again.events("open_event")] == [5]
"""

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 0, done.stderr


def test_an_event_is_padded_as_its_perf_buffer_pads_it() -> None:
    source = (Path(__file__).parents[1] / "probes" / "rings.bpf.c").read_text()
    with FakeSession(compile_bpf(source)) as session:
        for ring in ("events", "perf_events"):
            stream = session.events("sample", ring=ring, timeout=0)
            session.emit("sample", ring=ring, number=7)
            assert [event.number for event in stream] == [7]
            assert session.stats().rings[ring].malformed == 0
