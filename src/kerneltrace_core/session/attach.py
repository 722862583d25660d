"""Attach a loaded program to what a spec says: the way of each kind of probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.session import kernel_probes as kernel
from kerneltrace_core.session import network_probes as network
from kerneltrace_core.session import process_probes as process
from kerneltrace_core.session.attached import Attached
from kerneltrace_core.session.by_section import attach_by_section
from kerneltrace_core.session.choosing import check_fit
from kerneltrace_core.session.functions import attach_kprobe, attach_loaded
from kerneltrace_core.session.perfevents import attach_perf_event
from kerneltrace_core.session.probe import Probe
from kerneltrace_core.session.refusals import Cause, refuse
from kerneltrace_core.session.sections import BySection
from kerneltrace_core.session.tracepoints import attach_raw_tracepoint, attach_tracepoint
from kerneltrace_core.session.traffic import attach_cgroup, attach_tc, attach_xdp
from kerneltrace_core.session.uprobes import attach_uprobe
from kerneltrace_core.session.usdt import attach_usdt

__all__ = ["attach_spec"]

ByDescriptor = Callable[[int, ProgramFacts, Any], Attached]
ByObject = Callable[[BpfObject, ProgramFacts, Any], Attached]

ATTACH_PROGRAM: dict[type[Probe], ByDescriptor] = {
    kernel.Tracepoint: attach_tracepoint,
    kernel.RawTracepoint: attach_raw_tracepoint,
    kernel.BtfTracepoint: attach_loaded,
    kernel.Fentry: attach_loaded,
    kernel.Fexit: attach_loaded,
    kernel.FmodRet: attach_loaded,
    kernel.Lsm: attach_loaded,
    kernel.Kprobe: attach_kprobe,
    kernel.Kretprobe: attach_kprobe,
    process.Uprobe: attach_uprobe,
    process.Uretprobe: attach_uprobe,
    process.PerfEvent: attach_perf_event,
    network.Xdp: attach_xdp,
    network.Tc: attach_tc,
    network.Cgroup: attach_cgroup,
}
ATTACH_OBJECT: dict[type[Probe], ByObject] = {
    process.Usdt: attach_usdt,
    BySection: attach_by_section,
}


def attach_spec(opened: BpfObject, program: str, spec: Probe) -> Attached:
    """Attach a loaded program of an object; what is returned owns the attachment.

    Blocks for less than a millisecond, for uprobes and USDT as long as reading the binary's
    symbols takes. Raises AttachError, PrivilegeError or UnsupportedError, each with the probe,
    the program, the errno and the fix. Thread-safe while nobody closes the object.
    """
    facts = opened.program(program)
    check_fit(spec, facts)
    if not facts.loads:
        cause = Cause(
            "it was not loaded", "name it, or this probe, when the session is made: programs=[...]"
        )
        raise refuse(spec, facts, None, cause)
    by_object = ATTACH_OBJECT.get(type(spec))
    if by_object is not None:
        return by_object(opened, facts, spec)
    return ATTACH_PROGRAM[type(spec)](opened.program_fd(program), facts, spec)
