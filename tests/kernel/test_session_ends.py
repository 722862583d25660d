"""A session that is closed in the midst of something else: by another thread, by a signal."""

from __future__ import annotations

import dis
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from harness.forked import in_child
from harness.objects import compile_object
from harness.pace import rounds
from kerneltrace_core import BtfTracepoint, ClosedError, Filter, PerfEvent, Session
from kerneltrace_core._native import rings
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.session import links
from kerneltrace_core.session.attach import attach_spec
from kerneltrace_core.session.variables import Variables
from traced import run_python

OBJECT = compile_object("session")
SAMPLED = compile_object("attach")
FDS = Path("/proc/self/fd")
PROBE = BtfTracepoint("sys_enter", program="on_call")


@pytest.fixture(autouse=True)
def needs(require: Callable[..., None]) -> None:
    require("tracepoint:sys_enter", "ring_buffer")


@pytest.fixture
def after_attaching(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Return what is done at the end of each attach, before its caller has the attachment."""
    acts: list[Callable[[], None]] = []

    def attach(*given: Any) -> Any:
        attached = attach_spec(*given)
        while acts:
            acts.pop()()
        return attached

    monkeypatch.setattr(links, "attach_spec", attach)
    return acts


def elsewhere(act: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        thread = threading.Thread(target=act)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    return run


@pytest.mark.parametrize("by_thread", [True, False], ids=["thread", "signal"])
def test_a_session_closed_during_an_attach_leaves_nothing_attached(
    by_thread: bool, after_attaching: list[Callable[[], None]]
) -> None:
    before = set(FDS.iterdir())
    session = Session(OBJECT, programs=["on_call"]).open()
    after_attaching.append(elsewhere(session.close) if by_thread else session.close)

    with pytest.raises(ClosedError, match=r"attach .*: its session was closed meanwhile"):
        session.attach(PROBE)

    assert session.closed
    assert set(FDS.iterdir()) <= before


def test_a_signal_handler_closes_a_session_whose_link_is_being_attached(
    after_attaching: list[Callable[[], None]],
) -> None:
    session = Session(OBJECT, [PROBE]).open()
    [link] = session.links
    link.detach()
    after_attaching.append(session.close)

    with pytest.raises(ClosedError, match="its session is closed"):
        link.attach()

    assert not link.attached


def test_an_object_in_use_is_freed_by_its_last_user() -> None:
    opened = BpfObject(OBJECT.read_bytes(), "session")
    opened.select({"on_call"})
    opened.load()
    fd = opened.program_fd("on_call")

    with opened.in_use(), opened.in_use():
        opened.close()
        name = opened.closed, str((FDS / str(fd)).readlink())

    assert name == (True, "anon_inode:bpf-prog")
    assert not (FDS / str(fd)).exists()
    with pytest.raises(ClosedError, match="use BPF object session: it is closed"):
        opened.program("on_call")


def test_a_link_that_is_closed_is_forgotten() -> None:
    with Session(OBJECT, programs=["on_call"]) as session:
        for _ in range(3):
            session.attach(PROBE).close()
        last = session.attach(PROBE)

        assert session.links == (last,)
        assert len(session._open("look").links) == 1


def test_a_variable_that_is_read_while_its_session_closes_says_so() -> None:
    with Session(OBJECT, programs=["on_call"]) as session:
        sections: Any = session.variables._sections
        variables = Variables(session.layout.variables, sections)
        memory = sections.memory

        def closed_meanwhile(layout: Any) -> Any:
            found = memory(layout)
            variables.close()
            return found

        sections.memory = closed_meanwhile
        with pytest.raises(ClosedError, match="use variable failed: its session is closed"):
            variables["failed"]


def test_a_signal_handler_closes_a_session_in_the_midst_of_a_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session(OBJECT, [PROBE], filter=Filter(current_process=True)).open()
    events = session.events("call_event", ring="calls")
    drain = rings.drain_ring

    def closed_before(*given: Any) -> None:
        session.close()  # does nothing from the second time on
        drain(*given)

    def numbers() -> list[int]:
        monkeypatch.setattr(rings, "drain_ring", closed_before)
        return [event.number for event in events]

    for _ in range(3):
        os.getppid()
    first = session.variables["number"]

    assert numbers() == list(range(first - 3, first))
    assert session.closed


def test_a_child_that_is_forked_while_sessions_open_and_close_has_nothing_of_theirs() -> None:
    def open_and_close() -> None:
        for _ in range(rounds(20, in_guest=5)):
            Session(OBJECT, [PROBE]).open().close()

    thread = threading.Thread(target=open_and_close)
    thread.start()
    found = []
    while thread.is_alive():
        found.append(in_child(bpf_descriptors))

    assert len(found) > 3
    assert set(found) == {()}


WITH_THE_LOCK_HELD = """
import os, signal, sys, threading
from kerneltrace_core import Session

without_rings, with_rings = sys.argv[1:]
with Session(without_rings, programs=[]), Session(with_rings, programs=["on_call"]) as session:
    reader = session._parts.streams["calls"]._reader
    held, enough = threading.Event(), threading.Event()

    def drain():
        with reader._lock:
            held.set()
            enough.wait()

    thread = threading.Thread(target=drain)
    thread.start()
    held.wait()
    signal.alarm(20)
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(session.closed and reader.closed)
    print(os.waitpid(child, 0)[1] >> 8)
    enough.set()
    thread.join()
"""


def test_a_child_that_is_forked_while_its_parents_thread_drains_waits_for_nobody() -> None:
    assert run_python(WITH_THE_LOCK_HELD, str(SAMPLED), str(OBJECT)) == "1\n"


def bpf_descriptors() -> tuple[str, ...]:
    links = (os.path.realpath(each) for each in FDS.iterdir())
    return tuple(each for each in links if "bpf" in each)


# ---- what a signal handler raises ----------------------------------------------------------------


class StruckError(Exception):
    pass


class Striker:
    """Raise at one step of what is done after ``begin`` is called, where signal handlers may.

    CPython runs them when a function begins, when a loop goes back and after a call of C.
    """

    def __init__(self, step: int, begin: str) -> None:
        self.left = step
        self.begin = begin
        self.begun = False
        self.found: list[str] = []  # what was attached then
        self.last = (0, "")  # not the frame itself, which would live on by it

    def __call__(self, frame: FrameType, what: str, _: object) -> Striker:
        frame.f_trace_opcodes = True
        self.begun = self.begun or frame.f_code.co_name == self.begin
        operation = dis.opname[frame.f_code.co_code[max(frame.f_lasti, 0)]]
        after_c = self.last[0] == id(frame) and self.last[1].startswith("CALL")
        # Not where that call has raised: there no handler runs, and CPython would lose references.
        self.last = (id(frame), operation if what == "opcode" else "")
        back = operation.startswith(("JUMP_BACKWARD", "JUMP_ABSOLUTE"))
        if self.begun and (what == "call" or (what == "opcode" and (after_c or back))):
            self.left -= 1
            if not self.left:
                sys.settrace(None)
                self.found = attachments()
                raise StruckError
        return self

    def strikes(self, act: Callable[[], object]) -> bool:
        """Do it; tell whether it was struck."""
        try:
            sys.settrace(self)
            try:
                act()
            finally:
                sys.settrace(None)
        except StruckError:
            return True
        return False


def attachments() -> list[str]:
    names = (os.path.realpath(each).rpartition("/")[2] for each in FDS.iterdir())
    return [each for each in names if "link" in each or "perf_event" in each]


@pytest.mark.parametrize(
    ("path", "probe"),
    [(OBJECT, PROBE), (SAMPLED, PerfEvent(1000, pid=os.getpid(), program="on_perf_event"))],
    ids=["link", "perf event"],
)
def test_whatever_a_handler_raises_during_an_attach_nothing_stays_attached_unknown(
    path: Path, probe: Any, require: Callable[..., None]
) -> None:
    if path is SAMPLED:
        require("perf_events")
    there, left = 0, []
    with Session(path, programs=[probe.program]) as session:
        for step in range(1, 10_000):
            striker = Striker(step, "fill")
            if not striker.strikes(lambda: session.attach(probe)):
                break
            there += bool(striker.found)
            for link in session.links:  # struck behind that: the session has it
                link.close()
            left += [(step, each) for each in attachments()]
        attached = attachments()

    assert left == []
    assert there > 10
    assert len(attached) > 0
    assert attachments() == []
