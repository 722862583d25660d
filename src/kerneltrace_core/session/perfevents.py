"""Attach to samples of perf events: on every processor, one, or the threads of a process."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from pathlib import Path

from kerneltrace_core._native import attach as native
from kerneltrace_core._native.held import Descriptor
from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.errors import AttachError, UnsupportedError
from kerneltrace_core.kernel.processors import online_processors
from kerneltrace_core.session.attached import Attached, Descriptors
from kerneltrace_core.session.process_probes import EVENTS, HARDWARE, PerfEvent
from kerneltrace_core.session.refusals import (
    Cause,
    explained,
    missing_option,
    perf_privilege,
    plain_cause,
    refuse,
)
from kerneltrace_core.session.tracepoints import run_on_perf_event

__all__ = ["attach_perf_event"]

MAX_RATE = "/proc/sys/kernel/perf_event_max_sample_rate"


def _threads(pid: int) -> list[int]:
    try:
        return sorted(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def attach_perf_event(program_fd: int, program: ProgramFacts, spec: PerfEvent) -> Attached:
    """Open the events, one for each processor or thread, and let the program run on their samples.

    Threads that a process starts later are counted too; its children are not, from 5.13 on.
    """
    if spec.pid is None:
        where = [(-1, cpu) for cpu in ([spec.cpu] if spec.cpu is not None else online_processors())]
    else:
        where = [(tid, -1 if spec.cpu is None else spec.cpu) for tid in _threads(spec.pid)]
        if not where:
            gone = Cause(f"there is no process {spec.pid}", "it has ended")
            raise refuse(spec, program, errno.ESRCH, gone)
    with explained(spec, program, lambda code: _explain(code, spec)), ExitStack() as undo:
        links: list[Descriptor] = []
        for pid, cpu in where:
            try:
                event = _open(spec, pid, cpu)
            except AttachError as error:
                # A thread may end while we go through them; all of them do with their process.
                if error.errno == errno.ESRCH and (links or pid != where[-1][0]):
                    continue
                raise
            links.append(run_on_perf_event(event, program_fd))
            undo.callback(links[-1].close)
        undo.pop_all()
        return Descriptors(links)


def _open(spec: PerfEvent, pid: int, cpu: int) -> Descriptor:
    def open_inheriting(inherit: int) -> Descriptor:
        kind, config = EVENTS[spec.event]
        period, by_frequency = spec.count or spec.frequency_hz or 0, spec.count is None
        return native.open_perf_event(
            kind,
            config,
            period=period,
            by_frequency=by_frequency,
            inherit=inherit,
            pid=pid,
            cpu=cpu,
        )

    if pid < 0:
        return open_inheriting(0)
    try:
        return open_inheriting(native.THREADS)
    except AttachError as error:
        if error.errno != errno.EINVAL:
            raise
        return open_inheriting(native.PROCESSES)  # before 5.13 there is only all or nothing


def _explain(code: int, spec: PerfEvent) -> Cause:
    if code in (errno.EPERM, errno.EACCES):
        return perf_privilege(code)
    if code == errno.ESRCH:
        return Cause(f"there is no process {spec.pid}", "it has ended")
    if code in (errno.ENOENT, errno.EOPNOTSUPP) and EVENTS[spec.event][0] == HARDWARE:
        return Cause(
            f"this machine has no counter for {spec.event} (virtual machines often have none)",
            'take a software event: event="cpu-clock"',
            UnsupportedError,
        )
    if (
        code in (errno.ENODEV, errno.EINVAL)
        and spec.cpu is not None
        and spec.cpu not in online_processors()
    ):
        return Cause(f"there is no processor {spec.cpu}, or it is offline")
    if code == errno.EINVAL and spec.frequency_hz:
        limit = _max_rate()
        if limit and spec.frequency_hz > limit:
            return Cause(
                f"kernel.perf_event_max_sample_rate is {limit}", "take a lower frequency_hz"
            )
    if code == errno.ENOSYS:
        return missing_option("CONFIG_PERF_EVENTS") or Cause("the kernel has no perf events")
    if code == errno.EMFILE:
        return Cause(
            "no descriptor is left, and each processor or thread takes one", "raise ulimit -n"
        )
    return plain_cause(code)


def _max_rate() -> int | None:
    try:
        return int(Path(MAX_RATE).read_text())
    except (OSError, ValueError):
        return None
