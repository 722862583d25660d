"""Probes inside the kernel: tracepoints, functions, security hooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kerneltrace_core.session.probe import Probe

__all__ = [
    "BtfTracepoint",
    "Fentry",
    "Fexit",
    "FmodRet",
    "Kprobe",
    "Kretprobe",
    "Lsm",
    "RawTracepoint",
    "Tracepoint",
]

KPROBE = 2
TRACEPOINT = 5
RAW_TRACEPOINT = 17
RAW_TRACEPOINT_WRITABLE = 24
TRACING = 26
LSM = 29

TRACE_RAW_TP = 23
TRACE_FENTRY = 24
TRACE_FEXIT = 25
MODIFY_RETURN = 26
LSM_MAC = 27


@dataclass(frozen=True)
class Tracepoint(Probe):
    """A classic tracepoint; needs a readable tracefs, which is root's. Least kernel 5.5.

    ``Tracepoint("syscalls", "sys_enter_openat")``. With only CAP_BPF and CAP_PERFMON take
    ``BtfTracepoint`` or ``RawTracepoint``.
    """

    category: str
    name: str

    kind: ClassVar[str] = "tracepoint"
    sections: ClassVar[tuple[str, ...]] = ("tracepoint", "tp")
    program_types: ClassVar[frozenset[int]] = frozenset({TRACEPOINT})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._text("category")
        self._text("name")
        for part in ("category", "name"):
            if "/" in getattr(self, part):
                self._refuse(part, "a name without a slash")

    def target(self) -> str:
        """``category:name``."""
        return f"{self.category}:{self.name}"

    def section_targets(self) -> tuple[str, ...]:
        """``category/name``."""
        return (f"{self.category}/{self.name}",)


@dataclass(frozen=True)
class _Named(Probe):
    name: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self._text("name")

    def target(self) -> str:
        """Return the name."""
        return self.name

    def section_targets(self) -> tuple[str, ...]:
        """Return the name."""
        return (self.name,)


@dataclass(frozen=True)
class RawTracepoint(_Named):
    """A tracepoint with its raw arguments; no tracefs needed. Least kernel 5.5."""

    kind: ClassVar[str] = "raw tracepoint"
    sections: ClassVar[tuple[str, ...]] = (
        "raw_tp", "raw_tracepoint", "raw_tp.w", "raw_tracepoint.w",
    )  # fmt: skip
    program_types: ClassVar[frozenset[int]] = frozenset({RAW_TRACEPOINT, RAW_TRACEPOINT_WRITABLE})


@dataclass(frozen=True)
class _Loaded(_Named):
    """The kernel knows the target when it loads the program: one target for one program."""


@dataclass(frozen=True)
class BtfTracepoint(_Loaded):
    """A tracepoint with typed arguments (``tp_btf``); no tracefs needed. Least kernel 5.5."""

    kind: ClassVar[str] = "BTF tracepoint"
    sections: ClassVar[tuple[str, ...]] = ("tp_btf",)
    program_types: ClassVar[frozenset[int]] = frozenset({TRACING})
    attach_types: ClassVar[frozenset[int]] = frozenset({TRACE_RAW_TP})


@dataclass(frozen=True)
class Fentry(_Loaded):
    """The entry of a kernel function, typed arguments. Least kernel 5.5; refused under lockdown."""

    kind: ClassVar[str] = "fentry"
    sections: ClassVar[tuple[str, ...]] = ("fentry", "fentry.s")
    program_types: ClassVar[frozenset[int]] = frozenset({TRACING})
    attach_types: ClassVar[frozenset[int]] = frozenset({TRACE_FENTRY})


@dataclass(frozen=True)
class Fexit(_Loaded):
    """The return of a kernel function, with arguments and result. Least kernel 5.5."""

    kind: ClassVar[str] = "fexit"
    sections: ClassVar[tuple[str, ...]] = ("fexit", "fexit.s")
    program_types: ClassVar[frozenset[int]] = frozenset({TRACING})
    attach_types: ClassVar[frozenset[int]] = frozenset({TRACE_FEXIT})


@dataclass(frozen=True)
class FmodRet(_Loaded):
    """Change what a kernel function that allows it returns. Least kernel 5.7."""

    kind: ClassVar[str] = "fmod_ret"
    sections: ClassVar[tuple[str, ...]] = ("fmod_ret", "fmod_ret.s")
    program_types: ClassVar[frozenset[int]] = frozenset({TRACING})
    attach_types: ClassVar[frozenset[int]] = frozenset({MODIFY_RETURN})


@dataclass(frozen=True)
class Lsm(_Loaded):
    """A security hook (``Lsm("file_open")``) of a kernel with ``bpf`` in its ``lsm=``; 5.7."""

    kind: ClassVar[str] = "LSM hook"
    sections: ClassVar[tuple[str, ...]] = ("lsm", "lsm.s")
    program_types: ClassVar[frozenset[int]] = frozenset({LSM})
    attach_types: ClassVar[frozenset[int]] = frozenset({LSM_MAC})


@dataclass(frozen=True)
class Kprobe(Probe):
    """A kernel function, or an instruction ``offset`` bytes into it. Needs CONFIG_KPROBES.

    Privileges: CAP_PERFMON where kernel.perf_event_paranoid is 2 or less, else CAP_SYS_ADMIN.
    """

    function: str
    offset: int = 0

    kind: ClassVar[str] = "kprobe"
    sections: ClassVar[tuple[str, ...]] = ("kprobe",)
    program_types: ClassVar[frozenset[int]] = frozenset({KPROBE})
    attach_types: ClassVar[frozenset[int]] = frozenset({0})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._text("function")
        self._number("offset", 0)

    def target(self) -> str:
        """Return ``function``, or ``function+0x10``."""
        return self.function + (f"+{self.offset:#x}" if self.offset else "")

    def section_targets(self) -> tuple[str, ...]:
        """Return the two ways to write an offset."""
        return (self.target(), f"{self.function}+{self.offset}")


@dataclass(frozen=True)
class Kretprobe(Probe):
    """The return of a kernel function. Needs CONFIG_KRETPROBES; privileges as for Kprobe."""

    function: str

    kind: ClassVar[str] = "kretprobe"
    sections: ClassVar[tuple[str, ...]] = ("kretprobe",)
    program_types: ClassVar[frozenset[int]] = frozenset({KPROBE})
    attach_types: ClassVar[frozenset[int]] = frozenset({0})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._text("function")

    def target(self) -> str:
        """Return the function."""
        return self.function

    def section_targets(self) -> tuple[str, ...]:
        """Return the function."""
        return (self.function,)
