"""In-process kernel tracing for Python: what the Linux kernel did for each request.

Underneath is a library of its own: ``Session`` loads any BPF object, attaches its programs, and
streams what they write as typed events. Of all that nothing is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kerneltrace_core.errors import (
    AttachError,
    ClosedError,
    EventLayoutError,
    FormatError,
    KernelTraceError,
    LoadError,
    MapEmptyError,
    MapError,
    MapFullError,
    MapKeyError,
    MapKeyExistsError,
    NativeMissingError,
    OptionError,
    PrivilegeError,
    RingError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from kerneltrace_core.events.annotations import Array, Offset
    from kerneltrace_core.events.declare import kernel_event
    from kerneltrace_core.events.devices import Device, error_name
    from kerneltrace_core.events.engine import KernelEvent
    from kerneltrace_core.events.header import EventHeader
    from kerneltrace_core.events.scalars import (
        Address,
        Bytes,
        Chars,
        IPv4,
        IPv6,
        be16,
        be32,
        be64,
        chars,
        device,
        f32,
        f64,
        s8,
        s16,
        s32,
        s64,
        u8,
        u16,
        u32,
        u64,
    )
    from kerneltrace_core.maps.bpf_map import BpfMap
    from kerneltrace_core.maps.histogram import Histogram
    from kerneltrace_core.maps.opening import open_pinned
    from kerneltrace_core.session.filters import Filter
    from kerneltrace_core.session.info import bpf_stats
    from kerneltrace_core.session.links import Link
    from kerneltrace_core.session.probes import (
        BtfTracepoint,
        Cgroup,
        Fentry,
        Fexit,
        FmodRet,
        Kprobe,
        Kretprobe,
        Lsm,
        PerfEvent,
        Probe,
        RawTracepoint,
        Tc,
        Tracepoint,
        Uprobe,
        Uretprobe,
        Usdt,
        Xdp,
    )
    from kerneltrace_core.session.session import Session

__version__ = "0.1.0"

# Where the names come from that are imported when they are first asked for.
_LAZY = {
    "Session": "session.session",
    "bpf_stats": "session.info",
    "Filter": "session.filters",
    "Link": "session.links",
    "BtfTracepoint": "session.probes",
    "Cgroup": "session.probes",
    "Fentry": "session.probes",
    "Fexit": "session.probes",
    "FmodRet": "session.probes",
    "Kprobe": "session.probes",
    "Kretprobe": "session.probes",
    "Lsm": "session.probes",
    "PerfEvent": "session.probes",
    "Probe": "session.probes",
    "RawTracepoint": "session.probes",
    "Tc": "session.probes",
    "Tracepoint": "session.probes",
    "Uprobe": "session.probes",
    "Uretprobe": "session.probes",
    "Usdt": "session.probes",
    "Xdp": "session.probes",
    "EventHeader": "events.header",
    "Device": "events.devices",
    "error_name": "events.devices",
    "kernel_event": "events.declare",
    "KernelEvent": "events.engine",
    "Array": "events.annotations",
    "Offset": "events.annotations",
    "Address": "events.scalars",
    "Bytes": "events.scalars",
    "Chars": "events.scalars",
    "IPv4": "events.scalars",
    "IPv6": "events.scalars",
    "be16": "events.scalars",
    "be32": "events.scalars",
    "be64": "events.scalars",
    "chars": "events.scalars",
    "device": "events.scalars",
    "f32": "events.scalars",
    "f64": "events.scalars",
    "s8": "events.scalars",
    "s16": "events.scalars",
    "s32": "events.scalars",
    "s64": "events.scalars",
    "u8": "events.scalars",
    "u16": "events.scalars",
    "u32": "events.scalars",
    "u64": "events.scalars",
    "BpfMap": "maps.bpf_map",
    "Histogram": "maps.histogram",
    "open_pinned": "maps.opening",
}

__all__ = [
    "Address",
    "Array",
    "AttachError",
    "BpfMap",
    "BtfTracepoint",
    "Cgroup",
    "Bytes",
    "Chars",
    "ClosedError",
    "Device",
    "EventHeader",
    "EventLayoutError",
    "Fentry",
    "Fexit",
    "Filter",
    "FmodRet",
    "FormatError",
    "Histogram",
    "IPv4",
    "IPv6",
    "KernelEvent",
    "KernelTraceError",
    "Kprobe",
    "Kretprobe",
    "Link",
    "LoadError",
    "Lsm",
    "MapEmptyError",
    "MapError",
    "MapFullError",
    "MapKeyError",
    "MapKeyExistsError",
    "NativeMissingError",
    "Offset",
    "OptionError",
    "PerfEvent",
    "PrivilegeError",
    "Probe",
    "RawTracepoint",
    "RingError",
    "Session",
    "Tc",
    "Tracepoint",
    "UnsupportedError",
    "Uprobe",
    "Uretprobe",
    "Usdt",
    "Xdp",
    "__version__",
    "be16",
    "be32",
    "be64",
    "bpf_stats",
    "chars",
    "device",
    "error_name",
    "f32",
    "f64",
    "kernel_event",
    "open_pinned",
    "s16",
    "s32",
    "s64",
    "s8",
    "u16",
    "u32",
    "u64",
    "u8",
]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
