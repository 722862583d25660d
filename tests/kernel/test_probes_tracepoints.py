"""Tracepoints of every kind count known work exactly, as root and with two capabilities."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from harness.nobody import as_nobody
from harness.pace import rounds
from harness.probing import open_descriptors, probing, wait_until
from harness.tiers import Require
from kerneltrace_core._native import attach as native
from kerneltrace_core.errors import AttachError, ClosedError, PrivilegeError
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.session.links import Link
from kerneltrace_core.session.probes import BtfTracepoint, Probe, RawTracepoint, Tracepoint

pytestmark = pytest.mark.kernel

GETPPID = Tracepoint("syscalls", "sys_enter_getppid")
# Only these need to find their numbers in tracefs.
CLASSIC = pytest.mark.needs("tracefs")
KINDS: dict[str, Probe] = {
    "tracepoint_hits": GETPPID,
    "raw_hits": RawTracepoint("sys_enter"),
    "btf_hits": BtfTracepoint("sys_enter", program="on_btf"),
}


EACH_KIND = [pytest.param("tracepoint_hits", marks=CLASSIC), "raw_hits", "btf_hits"]


def call(times: int) -> None:
    for _ in range(times):
        os.getppid()


@pytest.mark.parametrize("counter", EACH_KIND)
def test_23_calls_are_23_hits(counter: str) -> None:
    with probing("attach", KINDS[counter]) as probes:
        call(23)
        assert probes[counter] == 23


@pytest.mark.parametrize("counter", EACH_KIND)
def test_a_link_that_is_detached_and_attached_again_counts_what_happens_while_it_is_attached(
    counter: str,
) -> None:
    with probing("attach", KINDS[counter]) as probes:
        (link,) = probes.links
        call(3)
        link.detach()
        link.detach()
        assert not link.attached
        call(5)
        link.attach()
        link.attach()
        assert link.attached
        call(7)
        assert probes[counter] == 3 + 7


@CLASSIC
def test_all_three_at_once_do_not_disturb_each_other() -> None:
    with probing("attach", *KINDS.values()) as probes:
        call(23)
        assert {name: probes[name] for name in KINDS} == dict.fromkeys(KINDS, 23)


def test_a_program_without_a_target_takes_that_of_its_probe() -> None:
    spec = BtfTracepoint("sched_process_exec", program="on_any_btf")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        os.execv("/bin/true", ["true"])
    with probing("attach", spec, tgid=child) as probes:
        os.write(writing, b"x")
        os.waitpid(child, 0)
        assert probes["exec_hits"] == 1
    os.close(reading)
    os.close(writing)


def test_nobody_with_two_capabilities_has_raw_and_btf_tracepoints() -> None:
    def count() -> tuple[int, int]:
        with probing("attach", KINDS["raw_hits"], KINDS["btf_hits"]) as probes:
            call(23)
            return probes["raw_hits"], probes["btf_hits"]

    assert as_nobody(count) == (23, 23)


@CLASSIC
def test_nobody_is_told_what_classic_tracepoints_need() -> None:
    def refused() -> tuple[str, int | None]:
        with pytest.raises(PrivilegeError) as caught, probing("attach", GETPPID):
            pass
        return str(caught.value), caught.value.errno

    told, number = as_nobody(refused)

    assert "attach tracepoint syscalls:sys_enter_getppid to program on_tracepoint (SEC(" in told
    assert "EACCES: permission denied reading tracefs" in told
    assert "take a BtfTracepoint or RawTracepoint, which need no tracefs" in told
    assert number == 13


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        pytest.param(
            Tracepoint("syscalls", "sys_enter_getpppid", program="on_tracepoint"),
            "did you mean syscalls:sys_enter_getppid",
            marks=CLASSIC,
        ),
        pytest.param(
            Tracepoint("syscalls", "sched_switch", program="on_tracepoint"),
            "did you mean sched:sched_switch?",
            marks=CLASSIC,
        ),
        pytest.param(
            Tracepoint("shed", "sched_switch", program="on_tracepoint"),
            "no tracepoint category shed (did you mean sched:sched_switch?)",
            marks=CLASSIC,
        ),
        (RawTracepoint("sys_entr", program="on_raw"), "did you mean sys_enter"),
        (RawTracepoint("sys_enter_openat", program="on_raw"),
         'or Tracepoint("syscalls", "sys_enter_openat")'),
        (BtfTracepoint("sched_swich", program="on_btf"), "did you mean sched_switch"),
    ],
)  # fmt: skip
def test_an_unknown_tracepoint_comes_with_the_one_that_was_meant(spec: Probe, told: str) -> None:
    with pytest.raises(AttachError) as caught, probing("attach", spec):
        pass

    assert told in str(caught.value)
    assert f"attach {spec} to program {spec.program} (SEC(" in str(caught.value)
    assert caught.value.errno in (2, 3)


def test_an_optional_probe_that_fails_is_logged_once_and_kept_as_the_links_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = RawTracepoint("no_such_tracepoint", program="on_raw", optional=True)
    with caplog.at_level(logging.WARNING, "kerneltrace"), probing("attach", spec) as probes:
        (link,) = probes.links
        link.attach()

        assert not link.attached
        assert isinstance(link.error, AttachError)
        assert [record.message for record in caplog.records] == [
            f"optional probe {spec} is left out: {link.error}"
        ]


@CLASSIC
def test_links_are_attached_and_detached_by_many_threads_while_events_flow() -> None:
    with probing("attach", *KINDS.values()) as probes:
        ended = threading.Event()

        def flow() -> None:
            while not ended.is_set():
                os.getppid()

        def flip() -> None:
            for _ in range(rounds(20, in_guest=4)):
                for link in probes.links:
                    link.detach()
                    link.attach()

        threads = [threading.Thread(target=flow), *(threading.Thread(target=flip) for _ in "ab")]
        for thread in threads:
            thread.start()
        for thread in threads[1:]:
            thread.join()
        ended.set()
        threads[0].join()

        assert all(link.attached for link in probes.links)
        before = {name: probes[name] for name in KINDS}
        call(23)
        assert {name: probes[name] - before[name] for name in KINDS} == dict.fromkeys(KINDS, 23)


@CLASSIC
def test_before_there_were_perf_links_the_event_itself_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_links(*_: object, **__: object) -> int:
        raise AttachError("create link: Invalid argument (EINVAL)", errno=errno.EINVAL)

    monkeypatch.setattr(native, "create_link", no_links)

    with probing("attach", GETPPID, attach=False) as probes:
        (link,) = probes.links
        before = open_descriptors()
        link.attach()
        call(23)
        assert len(open_descriptors()) == len(before) + 1
        link.detach()
        call(5)
        assert probes["tracepoint_hits"] == 23
        assert open_descriptors() == before


@CLASSIC
def test_the_same_program_twice_at_one_place_is_refused() -> None:
    with probing("attach", GETPPID) as probes:
        second = Link(probes.object, "on_tracepoint", GETPPID)
        with pytest.raises(AttachError, match="EEXIST: the program is attached there already"):
            second.attach()


@CLASSIC
def test_a_program_that_was_not_loaded_is_named() -> None:
    with probing("attach", GETPPID) as probes:
        link = Link(probes.object, "on_raw", RawTracepoint("sys_enter"))
        with pytest.raises(AttachError, match=r"to program on_raw .*: it was not loaded"):
            link.attach()


def link_ids() -> set[int]:
    """Return the ids of all of the kernel's links, anybody's."""
    shown = subprocess.run(
        ["bpftool", "--json", "link", "list"], check=True, capture_output=True, text=True
    )
    return {link["id"] for link in json.loads(shown.stdout or "[]")}


def own_link_ids() -> set[int]:
    """Return the ids of those that this process has descriptors of."""
    found = set()
    for path in Path("/proc/self/fdinfo").iterdir():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue  # the folder's own
        found |= {int(line.split()[1]) for line in lines if line.startswith("link_id:")}
    return found


def has_bpftool() -> Support:
    return Support.yes() if shutil.which("bpftool") else Support.no("bpftool is not installed")


def test_detaching_leaves_no_link_in_the_kernel(require: Require) -> None:
    require("capability:cap_sys_admin")
    require("bpftool", probe=has_bpftool)
    with probing("attach", KINDS["raw_hits"], KINDS["btf_hits"]) as probes:
        ours = own_link_ids()
        assert len(ours) == 2
        assert ours <= link_ids()
        for link in probes.links:
            link.detach()
        wait_until(lambda: not ours & link_ids(), f"links {ours} gone")


@CLASSIC
def test_detaching_leaves_no_descriptor() -> None:
    with probing("attach", *KINDS.values(), attach=False) as probes:
        before = open_descriptors()
        for _ in range(5):
            for link in probes.links:
                link.attach()
            assert len(open_descriptors()) == len(before) + len(KINDS)
            for link in probes.links:
                link.detach()
        assert open_descriptors() == before


@CLASSIC
def test_after_its_session_a_link_says_so() -> None:
    with probing("attach", GETPPID) as probes:
        (link,) = probes.links

    assert not link.attached
    link.detach()
    with pytest.raises(ClosedError, match="its session is closed"):
        link.attach()


@CLASSIC
def test_in_a_forked_child_a_link_is_the_parents() -> None:
    with probing("attach", *KINDS.values()) as probes:
        child = os.fork()
        if child == 0:
            wrong = [link for link in probes.links if link.attached]
            for link in probes.links:
                link.detach()
            try:
                probes.links[0].attach()
            except ClosedError as error:
                os._exit(0 if "the parent process's" in str(error) and not wrong else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        call(23)
        assert {name: probes[name] for name in KINDS} == dict.fromkeys(KINDS, 23)
