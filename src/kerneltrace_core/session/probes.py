"""Every kind of probe, in one place."""

from __future__ import annotations

from kerneltrace_core.session.kernel_probes import (
    BtfTracepoint,
    Fentry,
    Fexit,
    FmodRet,
    Kprobe,
    Kretprobe,
    Lsm,
    RawTracepoint,
    Tracepoint,
)
from kerneltrace_core.session.network_probes import Cgroup, Tc, Xdp
from kerneltrace_core.session.probe import Probe
from kerneltrace_core.session.process_probes import PerfEvent, Uprobe, Uretprobe, Usdt

__all__ = [
    "BtfTracepoint",
    "Cgroup",
    "Fentry",
    "Fexit",
    "FmodRet",
    "Kprobe",
    "Kretprobe",
    "Lsm",
    "PerfEvent",
    "Probe",
    "RawTracepoint",
    "Tc",
    "Tracepoint",
    "Uprobe",
    "Uretprobe",
    "Usdt",
    "Xdp",
]
