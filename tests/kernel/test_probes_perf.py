"""Perf events: samples by count and by frequency, of a process, of a processor, of threads."""

from __future__ import annotations

import mmap
import os
import threading
import time

import pytest

from harness.nobody import as_nobody
from harness.probing import open_descriptors, probing, wait_until
from harness.tiers import Require
from kerneltrace_core._native import attach as native
from kerneltrace_core.errors import AttachError, PrivilegeError, UnsupportedError
from kerneltrace_core.kernel.processors import online_processors
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.session.probes import PerfEvent
from kerneltrace_core.session.refusals import read_paranoid

pytestmark = pytest.mark.kernel


def spin(seconds: float) -> None:
    """Use the processor, this thread's own clock says for how long."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def touch(pages: int) -> None:
    """Fault in so many new pages, each once."""
    with mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(pages):
            area[page * mmap.PAGESIZE] = 1


def test_each_millisecond_of_cpu_time_is_a_sample() -> None:
    spec = PerfEvent(count=1_000_000, event="task-clock", pid=os.getpid())
    with probing("attach", spec) as probes:
        spin(0.5)
        hits = probes["perf_hits"]
    # The test itself adds some; an emulated processor's timer comes late, and misses most.
    assert 60 <= hits <= 700
    assert probes.links[0].attached is False


def test_a_frequency_is_about_kept() -> None:
    with probing("attach", PerfEvent(200, pid=os.getpid())) as probes:
        spin(0.5)
        hits = probes["perf_hits"]
    assert 25 <= hits <= 200


def test_every_page_fault_is_a_sample_of_count_1() -> None:
    # The clock is not to be trusted in a virtual machine; faults can be counted.
    spec = PerfEvent(count=1, event="page-faults", pid=os.getpid())
    touch(1000)
    with probing("attach", spec) as probes:
        before = probes["perf_hits"]
        touch(1000)
        hits = probes["perf_hits"] - before
    assert 1000 <= hits <= 1020


def test_a_system_wide_event_samples_every_processor() -> None:
    online = online_processors()
    with probing("attach", PerfEvent(500)) as probes:
        for cpu in online:
            before = probes["perf_hits"]
            os.sched_setaffinity(0, {cpu})
            try:
                wait_until(lambda: (spin(0.02), probes["perf_hits"] > before)[1], f"CPU {cpu}")  # noqa: B023
            finally:
                os.sched_setaffinity(0, online)


def test_one_processor_is_sampled_alone() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    with probing("attach", PerfEvent(count=1, event="page-faults", cpu=cpus[0])) as probes:
        os.sched_setaffinity(0, {cpus[-1]})
        try:
            touch(100)
            elsewhere = probes["perf_hits"]
            os.sched_setaffinity(0, {cpus[0]})
            touch(100)
            here = probes["perf_hits"] - elsewhere
        finally:
            os.sched_setaffinity(0, cpus)
    assert here >= 100
    if len(cpus) > 1:
        assert elsewhere == 0


def inherits_by_threads() -> Support:
    """Tell whether an event can be inherited by threads alone."""
    software, page_faults = 1, 2
    try:
        native.open_perf_event(software, page_faults, inherit=native.THREADS, pid=0).close()
    except AttachError as error:
        return Support.no(str(error), "Linux 5.13 or later", error.errno)
    except PrivilegeError as error:
        return Support.unknown(str(error), errno=error.errno)
    return Support.yes()


def test_threads_that_start_later_are_sampled_and_children_are_not(require: Require) -> None:
    require("events that threads alone inherit", probe=inherits_by_threads)
    spec = PerfEvent(count=1, event="page-faults", pid=os.getpid())
    with probing("attach", spec) as probes:
        thread = threading.Thread(target=touch, args=(1000,))
        thread.start()
        thread.join()
        assert probes["perf_hits"] >= 1000

        ours = probes["perf_hits_elsewhere"]
        child = os.fork()
        if child == 0:
            touch(1000)
            os._exit(0)
        os.waitpid(child, 0)
        assert probes["perf_hits_elsewhere"] == ours


def test_threads_that_run_already_are_sampled() -> None:
    going, stop = threading.Event(), threading.Event()

    def work() -> None:
        going.wait()
        touch(1000)
        stop.wait()

    thread = threading.Thread(target=work)
    thread.start()
    spec = PerfEvent(count=1, event="page-faults", pid=os.getpid())
    with probing("attach", spec) as probes:
        going.set()
        wait_until(lambda: probes["perf_hits"] >= 1000, "1000 page faults of the thread")
        stop.set()
        thread.join()


def test_it_can_be_attached_again_and_leaves_no_descriptor() -> None:
    spec = PerfEvent(count=1, event="page-faults", pid=os.getpid())
    with probing("attach", spec, attach=False) as probes:
        (link,) = probes.links
        before = open_descriptors()
        for _ in range(3):
            link.attach()
            touch(100)
            link.detach()
            hits = probes["perf_hits"]
            touch(100)
            assert probes["perf_hits"] == hits
        assert 300 <= hits <= 360
        assert open_descriptors() == before


def test_hardware_events_sample(require: Require) -> None:
    require("hardware_events")
    with probing("attach", PerfEvent(count=100_000, event="cycles", pid=os.getpid())) as probes:
        wait_until(lambda: (spin(0.02), probes["perf_hits"] >= 10)[1], "samples of cycles")


def no_hardware_events() -> Support:
    from kerneltrace_core.kernel.features import FeatureProbes
    from kerneltrace_core.kernel.privileges import read_privileges

    has = FeatureProbes(read_privileges()).hardware_events().works
    return Support.no("this machine has hardware events") if has else Support.yes()


def test_a_machine_without_hardware_events_says_so(require: Require) -> None:
    require("no hardware events", probe=no_hardware_events)
    with (
        pytest.raises(UnsupportedError) as caught,
        probing("attach", PerfEvent(99, event="cycles")),
    ):
        pass
    assert "attach perf event cycles at 99 Hz to program on_perf_event" in str(caught.value)
    assert "no counter for cycles" in str(caught.value)
    assert 'event="cpu-clock"' in str(caught.value)


def test_what_cannot_be_sampled_is_said() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    cases = {
        PerfEvent(99, pid=child): f"ESRCH: there is no process {child}",
        PerfEvent(99, cpu=4095): "there is no processor 4095, or it is offline",
        PerfEvent(10_000_000): "kernel.perf_event_max_sample_rate is",
    }
    for spec, told in cases.items():
        with pytest.raises(AttachError) as caught, probing("attach", spec):
            pass
        assert told in str(caught.value)


def test_nobody_with_two_capabilities_samples_or_is_told_the_sysctl() -> None:
    def sample() -> int | str:
        spec = PerfEvent(count=1, event="page-faults", pid=os.getpid())
        try:
            with probing("attach", spec) as probes:
                touch(1000)
                return probes["perf_hits"]
        except PrivilegeError as error:
            return str(error)

    told = as_nobody(sample)

    if (read_paranoid() or 0) <= 2:
        assert isinstance(told, int)
        assert 1000 <= told <= 1100  # and those of the interpreter itself, in a fresh child
    else:
        assert isinstance(told, str)
        assert "kernel.perf_event_paranoid is 3, so perf events need CAP_SYS_ADMIN" in told
        assert "sysctl kernel.perf_event_paranoid=2" in told
