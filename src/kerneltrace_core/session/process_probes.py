"""Probes in user space: functions of a binary, its static tracepoints, samples of a processor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from kerneltrace_core.errors import OptionError
from kerneltrace_core.session.kernel_probes import KPROBE
from kerneltrace_core.session.probe import Probe

__all__ = ["EVENTS", "SELF", "PerfEvent", "Uprobe", "Uretprobe", "Usdt"]

PERF_EVENT = 7
TRACE_UPROBE_MULTI = 48

HARDWARE, SOFTWARE = 0, 1

# Names as perf(1) has them: type and config of perf_event_open(2).
EVENTS: dict[str, tuple[int, int]] = {
    "cpu-clock": (SOFTWARE, 0),
    "task-clock": (SOFTWARE, 1),
    "page-faults": (SOFTWARE, 2),
    "context-switches": (SOFTWARE, 3),
    "cpu-migrations": (SOFTWARE, 4),
    "minor-faults": (SOFTWARE, 5),
    "major-faults": (SOFTWARE, 6),
    "alignment-faults": (SOFTWARE, 7),
    "emulation-faults": (SOFTWARE, 8),
    "cycles": (HARDWARE, 0),
    "instructions": (HARDWARE, 1),
    "cache-references": (HARDWARE, 2),
    "cache-misses": (HARDWARE, 3),
    "branches": (HARDWARE, 4),
    "branch-misses": (HARDWARE, 5),
    "bus-cycles": (HARDWARE, 6),
    "stalled-cycles-frontend": (HARDWARE, 7),
    "stalled-cycles-backend": (HARDWARE, 8),
    "ref-cycles": (HARDWARE, 9),
}

# The running interpreter: its executable or its libpython, whichever has what is looked for.
SELF = "<this interpreter>"


@dataclass(frozen=True)
class _Binary(Probe):
    binary: str | os.PathLike[str]

    program_types: ClassVar[frozenset[int]] = frozenset({KPROBE})
    attach_types: ClassVar[frozenset[int]] = frozenset({0, TRACE_UPROBE_MULTI})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.binary, os.PathLike):
            object.__setattr__(self, "binary", os.fspath(self.binary))
        self._text("binary")

    @property
    def path(self) -> str:
        """Return ``binary`` as text."""
        return os.fspath(self.binary)


@dataclass(frozen=True)
class _Function(_Binary):
    symbol: str | None = None
    offset: int = 0
    pid: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._text("symbol", optional=True)
        self._number("offset", 0)
        self._number("pid", 1, 2**31 - 1, optional=True)
        if self.symbol is None and not self.offset:
            raise OptionError(
                f"{type(self).__name__} {self.path}: neither a symbol nor an offset is given"
            )

    def target(self) -> str:
        """``path:symbol+0x4``, or ``path+0x1234``, and the process."""
        offset = f"+{self.offset:#x}" if self.offset else ""
        place = f"{self.path}:{self.symbol}{offset}" if self.symbol else f"{self.path}{offset}"
        return place if self.pid is None else f"{place} of process {self.pid}"

    def section_targets(self) -> tuple[str, ...]:
        """``path:symbol+4``."""
        if self.symbol is None:
            return ()
        place = f"{self.path}:{self.symbol}"
        return (place, f"{place}+{self.offset:#x}", f"{place}+{self.offset}")[
            0 if not self.offset else 1 :
        ]


@dataclass(frozen=True)
class Uprobe(_Function):
    """A function of a binary or library, or an instruction in it.

    ``binary``: a path, or a library's name (``libc.so.6``), which is looked for among what
    ``pid`` or this process has mapped, then where libraries and commands are. With ``symbol``,
    ``offset`` counts from it; without, from the beginning of the file. ``pid``: only that
    process, which may be in another mount namespace; None: every process, also later ones.

    Linux 6.6 with CAP_BPF and CAP_PERFMON (uprobe_multi); before it CAP_SYS_ADMIN. A hit costs
    its process one to nine microseconds.
    """

    kind: ClassVar[str] = "uprobe"
    sections: ClassVar[tuple[str, ...]] = (
        "uprobe", "uprobe.s", "uprobe.multi", "uprobe.multi.s",
    )  # fmt: skip


@dataclass(frozen=True)
class Uretprobe(_Function):
    """The return of a function of a binary or library; otherwise as Uprobe."""

    kind: ClassVar[str] = "uretprobe"
    sections: ClassVar[tuple[str, ...]] = (
        "uretprobe", "uretprobe.s", "uretprobe.multi", "uretprobe.multi.s",
    )  # fmt: skip


@dataclass(frozen=True)
class Usdt(_Binary):
    """A static tracepoint of a binary (``.note.stapsdt``): every place in it of that name.

    The program is a ``SEC("usdt")`` one with ``bpf_usdt_arg()`` of usdt.bpf.h, or a plain
    ``SEC("uprobe")`` one that reads no arguments. Privileges as for Uprobe; arguments need 5.15.
    """

    provider: str
    name: str
    pid: int | None = None

    kind: ClassVar[str] = "USDT"
    # By preference: a program without arguments may serve too.
    sections: ClassVar[tuple[str, ...]] = ("usdt", "usdt.s")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._text("provider")
        self._text("name")
        self._number("pid", 0 if self.binary == SELF else 1, 2**31 - 1, optional=True)

    @classmethod
    def self_(
        cls,
        provider: str,
        name: str,
        *,
        program: str | None = None,
        optional: bool = False,
        label: str | None = None,
    ) -> Usdt:
        """Probe the running interpreter, in this process alone.

        Which file that is, the executable or its libpython, is found when it is attached.
        """
        return cls(SELF, provider, name, pid=0, program=program, optional=optional, label=label)

    def target(self) -> str:
        """``path:provider:name``, and the process."""
        place = f"{self.path}:{self.provider}:{self.name}"
        return f"{place} of process {self.pid}" if self.pid else place

    def section_targets(self) -> tuple[str, ...]:
        """``path:provider:name``."""
        return (f"{self.path}:{self.provider}:{self.name}",)


@dataclass(frozen=True)
class PerfEvent(Probe):
    """Samples of an event: each ``count`` of them, or about ``frequency_hz`` times a second.

    ``event`` is a name of perf(1): cpu-clock (counted in nanoseconds), page-faults, cycles...
    ``pid``: the threads of that process and those that they start later; ``cpu``: one processor;
    neither: every processor, all processes. Privileges: CAP_PERFMON where
    kernel.perf_event_paranoid is 2 or less, else CAP_SYS_ADMIN.
    """

    frequency_hz: int | None = None
    count: int | None = None
    event: str = "cpu-clock"
    pid: int | None = None
    cpu: int | None = None

    kind: ClassVar[str] = "perf event"
    sections: ClassVar[tuple[str, ...]] = ("perf_event",)
    program_types: ClassVar[frozenset[int]] = frozenset({PERF_EVENT})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("frequency_hz", 1, 10_000_000, optional=True)
        self._number("count", 1, optional=True)
        self._number("pid", 1, 2**31 - 1, optional=True)
        self._number("cpu", 0, 2**16, optional=True)
        self._one_of("event", tuple(EVENTS))
        if (self.frequency_hz is None) == (self.count is None):
            raise OptionError("PerfEvent: give either frequency_hz or count")

    def target(self) -> str:
        """``cpu-clock at 99 Hz``, ``page-faults each 1 on CPU 0``."""
        rate = f"at {self.frequency_hz} Hz" if self.frequency_hz else f"each {self.count}"
        where = f" of process {self.pid}" if self.pid is not None else ""
        return f"{self.event} {rate}{where}" + (f" on CPU {self.cpu}" * (self.cpu is not None))
