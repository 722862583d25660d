"""A filter lets through every call of whom it wants, and no call of anybody else."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.filtering import call, filtering
from harness.forked import in_child
from harness.map_object import memory_for_maps
from harness.nobody import as_nobody
from harness.objects import compile_object
from harness.pace import rounds
from harness.tiers import Require
from kerneltrace_core import Session
from kerneltrace_core.btf.layout import ObjectLayout
from kerneltrace_core.errors import MapError, OptionError
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.maps.maps import Maps
from kerneltrace_core.session.filter_maps import FLAGS, FOLLOW, SETTINGS, TGIDS
from kerneltrace_core.session.filters import FOLLOWERS, Filter
from kerneltrace_core.session.links import Link

pytestmark = pytest.mark.kernel

NOBODY = 65534
UNUSED = 4194304  # PID_MAX_LIMIT: numbers end below it
OWN = Filter(current_process=True)
OWN_AND_CHILDREN = Filter(current_process=True, follow_forks=True)
TESTS = Path(__file__).parents[1]
PATIENCE_SECONDS = 60


@pytest.fixture(autouse=True)
def programs(require: Require) -> None:
    require("tracepoint:sys_enter")
    require("memory for maps", probe=memory_for_maps)


def eventually(reached: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.01)
    return reached()


def in_thread(act: Callable[[], object]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


# ---- processes ----------------------------------------------------------------------


def test_without_a_filter_everybody_is_wanted() -> None:
    with filtering(None) as found:
        call(100)
        in_child(lambda: call(50))

        assert found.wanted() >= 150
        assert found.filtered() == 0


@pytest.mark.unprivileged
def test_only_the_calls_of_the_own_process_are_counted_and_the_rest_as_filtered() -> None:
    with filtering(OWN) as found:
        call(100)
        in_thread(lambda: call(20))
        in_child(lambda: call(50))

        assert found.wanted() == 120
        assert found.filtered() >= 50


def test_other_processes_are_named_by_number() -> None:
    with filtering(Filter(pids=[])) as found:
        go, told = os.pipe()
        child = os.fork()
        if not child:
            os.read(go, 1)
            call(70)
            os._exit(0)
        call(100)
        found.control.set(Filter(pids=[child]))
        call(100)
        os.write(told, b"x")
        os.waitpid(child, 0)

        assert found.wanted() == 70
        os.close(go)
        os.close(told)


def test_an_empty_set_is_nobody() -> None:
    with filtering(Filter(pids=())) as found:
        call(100)

        assert found.wanted() == 0


def test_threads_are_named_by_number() -> None:
    with filtering(Filter(tids=[])) as found:

        def work() -> None:
            call(10)
            found.control.set(Filter(tids=[threading.get_native_id()]))
            call(30)

        in_thread(work)
        call(100)

        assert found.wanted() == 30


def test_every_condition_has_to_be_met() -> None:
    with filtering(Filter(current_process=True, tids=[threading.get_native_id()])) as found:
        call(10)
        in_thread(lambda: call(100))

        assert found.wanted() == 10

        found.control.set(Filter(current_process=True, uids=[os.getuid() + 1]))
        call(10)

        assert found.wanted() == 0


def test_users_are_named_by_number(require: Require) -> None:
    require("capability:cap_setuid")

    def work() -> None:
        call(10)
        os.setuid(NOBODY)
        call(40)

    with filtering(Filter(uids=[NOBODY])) as found:
        call(100)
        in_child(work)

        assert found.wanted() == 40


def test_bpf_and_perfmon_are_enough_to_filter_and_to_follow(require: Require) -> None:
    require("capability:cap_setuid", "capability:cap_setpcap")
    require("memory for nobody's maps", probe=lambda: as_nobody(memory_for_maps))
    # Imports and compiles what nobody may not read.
    with filtering(OWN) as found:
        found.filtered()

    def count() -> int:
        with filtering(OWN_AND_CHILDREN, follows=True) as found:
            call(100)
            in_child(lambda: call(5))
            found.filtered()
            return found.wanted()

    assert as_nobody(count) == 105


# ---- changes ------------------------------------------------------------------------


def test_a_change_holds_from_the_next_call_on() -> None:
    with filtering(Filter(pids=[])) as found:
        for turn in range(20):
            found.control.set(OWN if turn % 2 else Filter(tids=[1]))
            call(100)
        found.control.clear()
        before = found.wanted()
        call(100)

        assert before == 1000
        assert found.wanted() >= 100
        assert found.control.filter == Filter()
        assert found.control.processes == frozenset()


def test_who_is_wanted_all_along_misses_no_call_while_filters_change() -> None:
    own, thread = os.getpid(), threading.get_native_id()
    filters = [
        Filter(current_process=True),
        Filter(pids=[own, UNUSED]),
        Filter(tids=[thread, UNUSED]),
        Filter(pids=[own, UNUSED - 1], tids=[thread]),
        Filter(uids=[os.getuid()], tids=[thread]),
        Filter(uids=[os.getuid(), NOBODY], pids=[own]),
    ]
    done = threading.Event()

    with filtering(filters[0]) as found:

        def change() -> None:
            try:
                for _ in range(rounds(30, in_guest=5)):
                    for each in filters:
                        found.control.set(each)
            finally:
                done.set()

        changing = threading.Thread(target=change)
        changing.start()
        made = 0
        while not done.is_set():
            call(100)
            made += 100
        changing.join()

        assert found.wanted() == made


# ---- children -----------------------------------------------------------------------


def test_children_are_not_followed_unless_it_is_asked_for() -> None:
    with filtering(OWN, follows=True) as found:
        in_child(lambda: call(50))
        call(10)

        assert found.wanted() == 10


@pytest.mark.unprivileged
def test_children_and_their_children_are_followed_from_their_first_call_on() -> None:
    def work() -> None:
        call(50)
        in_child(lambda: call(7))

    with filtering(OWN_AND_CHILDREN, follows=True) as found:
        call(10)
        in_child(work)
        in_thread(lambda: call(5))

        assert found.wanted() == 72
        assert found.control.unfollowed == 0
        assert eventually(lambda: found.control.processes == {os.getpid()})


def test_a_child_is_followed_until_its_last_thread_has_ended() -> None:
    exit_thread = 60 if os.uname().machine == "x86_64" else 93
    libc = ctypes.CDLL(None)

    with filtering(OWN_AND_CHILDREN, follows=True) as found:
        child = os.fork()
        if not child:
            leader = Path(f"/proc/self/task/{os.getpid()}/stat")

            def rest() -> None:
                while leader.read_text().rpartition(")")[2].split()[0] != "Z":
                    time.sleep(0.001)
                call(30)
                os._exit(0)

            threading.Thread(target=rest).start()
            libc.syscall(exit_thread, 0)
        os.waitpid(child, 0)

        assert found.wanted() == 30
        assert eventually(lambda: found.control.processes == {os.getpid()})


def test_followed_children_stay_while_the_process_they_descend_from_is_wanted() -> None:
    own = os.getpid()
    with filtering(OWN_AND_CHILDREN, follows=True) as found:
        go, told = os.pipe()
        child = os.fork()
        if not child:
            os.read(go, 1)
            call(50)
            os._exit(0)
        found.control.set(Filter(pids=[own, UNUSED], follow_forks=True))
        stayed = found.control.processes
        found.control.set(Filter(pids=[UNUSED], follow_forks=True))
        gone = found.control.processes
        os.write(told, b"x")
        os.waitpid(child, 0)
        os.close(go)
        os.close(told)

        assert stayed == {own, child, UNUSED}
        assert gone == {UNUSED}
        assert found.wanted() == 0


def test_children_for_whom_there_is_no_room_are_counted() -> None:
    with filtering(OWN_AND_CHILDREN, follows=True, processes=1) as found:
        in_child(lambda: call(50))
        in_child(lambda: call(50))
        call(10)

        assert found.wanted() == 10
        assert found.control.unfollowed == 2


def test_forks_cannot_be_followed_by_a_session_that_did_not_begin_so() -> None:
    with filtering(OWN) as found:
        with pytest.raises(OptionError, match="Filter option follow_forks: True in a session"):
            found.control.set(OWN_AND_CHILDREN)

        assert found.control.filter == OWN


def test_more_processes_than_there_is_room_for_are_refused_before_anything_changes() -> None:
    with filtering(OWN, processes=3) as found:
        with pytest.raises(OptionError, match=r"pids: 4 given, map kt_filter_tgids has room for 3"):
            found.control.set(Filter(pids=[1, 2, 3, 4]))
        call(10)

        assert found.wanted() == 10


@contextmanager
def waiting_child() -> Iterator[int]:
    """Have a child that waits for the block's end and then makes 50 calls."""
    go, told = os.pipe()
    child = os.fork()
    if not child:
        os.read(go, 1)
        call(50)
        os._exit(0)
    try:
        yield child
    finally:
        os.write(told, b"x")
        os.waitpid(child, 0)
        os.close(go)
        os.close(told)


def test_a_change_without_room_for_children_that_stay_changes_nothing() -> None:
    own = os.getpid()
    with filtering(OWN_AND_CHILDREN, follows=True, processes=2) as found:
        with waiting_child() as child:
            with pytest.raises(OptionError, match=r"pids: 2 given and 1 of their children follow"):
                found.control.set(Filter(pids=[own, UNUSED], uids=[NOBODY], follow_forks=True))
            call(10)
            before = found.wanted()
            kept = found.control.filter, found.control.processes
            found.control.set(Filter(tids=[threading.get_native_id()]))
            call(5)

        assert kept == (OWN_AND_CHILDREN, {own, child})
        assert (before, found.wanted()) == (10, 5)
        assert found.control.processes == frozenset()


def test_a_change_that_is_refused_halfway_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    own, thread = os.getpid(), threading.get_native_id()
    wanted = Filter(pids=[own, UNUSED], tids=[thread], follow_forks=True)
    with filtering(wanted, follows=True) as found:
        maps: Any = found.control._maps
        kind = type(maps["kt_filter_uids"])
        store = kind.__setitem__

        def refuse(where: Any, key: Any, value: Any) -> None:
            if where.name == "kt_filter_tgids" and key == UNUSED - 1:
                raise MapError("update map kt_filter_tgids: no memory")
            store(where, key, value)

        def count_both() -> int:
            call(10)
            in_thread(lambda: call(100))
            return found.wanted()

        assert count_both() == 10
        with monkeypatch.context() as patch:
            patch.setattr(kind, "__setitem__", refuse)
            with pytest.raises(MapError, match="no memory"):
                found.control.set(Filter(pids=[UNUSED - 1], tids=[1, 2], uids=[NOBODY]))

        assert count_both() == 10
        assert found.control.processes == {own, UNUSED}
        assert found.control.filter == wanted
        found.control.set(OWN)
        assert count_both() == 110


# ---- control groups -----------------------------------------------------------------


@pytest.fixture
def group(require: Require) -> Iterator[Path]:
    """Return a new control group of version 2, empty, removed afterwards with what is in it."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mounted = [Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2"]

    def probe() -> Support:
        if not mounted:
            return Support.no("no control groups of version 2 are mounted")
        writable = os.access(mounted[0], os.W_OK)
        return Support.yes() if writable else Support.no(f"{mounted[0]} cannot be written")

    require("control groups of version 2", probe=probe)
    folder = mounted[0] / f"kerneltrace-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    for each in sorted(folder.rglob("*"), reverse=True):
        if each.is_dir():
            each.rmdir()
    folder.rmdir()


def call_in(group: Path, count: int) -> None:
    (group / "cgroup.procs").write_text("0")
    call(count)


def test_control_groups_are_named_by_folder_or_number(group: Path) -> None:
    with filtering(Filter(cgroups=[group])) as found:
        call(100)
        in_child(lambda: call_in(group, 40))

        assert found.wanted() == 40

        found.control.set(Filter(cgroups=[group.stat().st_ino]))
        in_child(lambda: call_in(group, 30))

        assert found.wanted() == 30


def test_a_control_group_includes_those_within_and_not_those_around(group: Path) -> None:
    inner = group / "middle" / "inner"
    inner.mkdir(parents=True)

    with filtering(Filter(cgroups=[group])) as found:
        in_child(lambda: call_in(inner, 40))

        assert found.wanted() == 40

        found.control.set(Filter(cgroups=[inner]))
        in_child(lambda: call_in(group, 40))

        assert found.wanted() == 0


def test_a_folder_that_is_no_control_group_is_refused(tmp_path: Path) -> None:
    with filtering(OWN) as found:
        with pytest.raises(OptionError, match=r"cgroups: .* is no control group of version 2"):
            found.control.set(Filter(cgroups=[tmp_path]))

        assert found.control.filter == OWN


# ---- pid namespaces -----------------------------------------------------------------


@contextmanager
def unshared(script: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python as the first process of a new pid namespace, which ends with the block."""
    unshare = shutil.which("unshare")
    assert unshare is not None
    running = subprocess.Popen(
        [unshare, "--pid", "--fork", "--kill-child", *options, sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    with running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()


INSIDE = """
import os
from harness.filtering import call, filtering
from harness.forked import in_child
from kerneltrace_core.session.filters import Filter
outside = int(input())
assert os.getpid() == 1
with filtering(Filter(current_process=True)) as found:
    call(100)
    in_child(lambda: call(50))
    print(found.wanted())
    found.control.set(Filter(pids=[outside]))
    print("ready", flush=True)
    input()
    print(found.wanted())
with filtering(Filter(current_process=True, follow_forks=True), follows=True) as found:
    call(100)
    in_child(lambda: (call(50), in_child(lambda: call(3))))
    print(found.wanted())
"""


@pytest.mark.parametrize("options", [(), ("--mount-proc",)], ids=["outer /proc", "own /proc"])
def test_a_session_inside_a_pid_namespace_goes_by_its_own_numbers(
    require: Require, options: tuple[str, ...]
) -> None:
    require("capability:cap_sys_admin")
    with unshared(INSIDE, *options) as inside:
        assert inside.stdin is not None
        assert inside.stdout is not None
        inside.stdin.write(f"{os.getpid()}\n")
        inside.stdin.flush()
        own_and_no_child = inside.stdout.readline()
        ready = inside.stdout.readline()
        # The number that the session was told is this process's, and means nobody in there.
        call(100)
        rest, _ = inside.communicate("go\n")

    assert (own_and_no_child, ready, rest.split()) == ("100\n", "ready\n", ["0", "153"])


def test_processes_of_a_namespace_within_are_named_by_their_outer_number(
    require: Require,
) -> None:
    require("capability:cap_sys_admin")
    script = "import os; print(flush=True); input(); [os.getppid() for _ in range(60)]"
    with unshared(script) as inside:
        assert inside.stdout is not None
        inside.stdout.readline()
        children = Path(f"/proc/{inside.pid}/task/{inside.pid}/children").read_text()

        with filtering(Filter(pids=[int(children)])) as found:
            call(100)
            inside.communicate("go\n")

            assert found.wanted() == 60


def test_a_followed_child_may_begin_a_namespace(require: Require) -> None:
    require("capability:cap_sys_admin")

    with filtering(OWN_AND_CHILDREN, follows=True) as found:
        with unshared("import os; [os.getppid() for _ in range(60)]") as inside:
            inside.communicate()

        assert found.wanted() == 60
        assert eventually(lambda: found.control.processes == {os.getpid()})


REUSED = """
import os
from harness.filtering import call, filtering
from kerneltrace_core.session.filters import Filter

def born_as(number):
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(number - 1))
    child = os.fork()
    if not child:
        call(50)
        os._exit(0)
    os.waitpid(child, 0)
    return child

for follows in (False, True):
    with filtering(Filter(pids=[500], follow_forks=follows), follows=True) as found:
        print(born_as(500), found.wanted(), 500 in found.control.processes)
"""


def test_a_number_that_a_stranger_gets_is_his_where_forks_are_followed(require: Require) -> None:
    def probe() -> Support:
        there = Path("/proc/sys/kernel/ns_last_pid").exists()
        return Support.yes() if there else Support.no("no CONFIG_CHECKPOINT_RESTORE")

    require("capability:cap_sys_admin")
    require("numbers of new processes can be chosen", probe=probe)

    with unshared(REUSED, "--mount-proc") as inside:
        told, _ = inside.communicate()

    assert told.splitlines() == ["500 50 True", "500 0 False"]


# ---- sessions -----------------------------------------------------------------------


def test_a_session_that_follows_forks_counts_for_the_family() -> None:
    with Session(compile_object("filters"), "auto", filter=OWN_AND_CHILDREN) as session:
        call(10)
        in_child(lambda: call(5))

        assert session.variables["wanted"] == 15
        assert eventually(lambda: session.filter.processes == {os.getpid()})


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (OWN, [("count_wanted", FLAGS[TGIDS])]),
        (
            OWN_AND_CHILDREN,
            [(program, FLAGS[TGIDS] | FOLLOW) for program in (*FOLLOWERS, "count_wanted")],
        ),
    ],
    ids=["own", "children"],
)
def test_the_filter_is_set_before_the_first_attach_and_following_begins_first(
    wanted: Filter, expected: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = compile_object("filters").read_bytes()
    layout = ObjectLayout.from_elf(data)
    attach = Link.attach
    found: list[tuple[str, int]] = []
    processes: list[set[int]] = []

    def look_and_attach(link: Link) -> None:
        maps = Maps(link._object.map_fd, layout.maps)
        found.append((link.program, maps[SETTINGS][0].flags))
        processes.append(set(maps[TGIDS]))
        maps.close()
        attach(link)

    monkeypatch.setattr(Link, "attach", look_and_attach)
    with Session(data, "auto", filter=wanted) as session:
        attached = [link.program for link in session.links]

    assert found == expected
    assert processes == [{os.getpid()}] * len(expected)
    assert attached == [program for program, _ in expected]


def test_a_session_that_was_opened_without_a_filter_takes_one_later() -> None:
    with Session(compile_object("filters"), "auto") as session:
        session.filter.set(OWN)
        before = session.variables["wanted"]
        call(10)
        in_child(lambda: call(5))

        assert session.variables["wanted"] == before + 10
        with pytest.raises(OptionError, match="opened without it"):
            session.filter.set(OWN_AND_CHILDREN)


def test_an_object_without_the_header_takes_no_filter() -> None:
    with pytest.raises(OptionError, match=r"built without filters \(include <kerneltrace/kt_filt"):
        Session(compile_object("calls"), "auto", filter=OWN).open()
