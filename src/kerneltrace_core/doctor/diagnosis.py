"""What the doctor found: plain data, the same for the text and for the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kerneltrace_core.kernel.support import Support, Verdict, worst

__all__ = ["Backend", "Diagnosis", "Finding", "System"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``parts`` are the tracepoints of a group. Immutable."""

    name: str
    support: Support
    required: bool = True
    parts: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class System:
    """Where the doctor ran."""

    kernel: str
    machine: str
    python: str
    executable: str
    uid: int
    missing_capabilities: tuple[str, ...] = ()
    bounded: bool = False  # a missing capability is not even in the bounding set
    no_new_privs: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Backend:
    """What ``backend="auto"`` chooses here: bpf or procfs, and why."""

    name: str
    certain: bool
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """All findings. ``groups`` and ``needs`` decide the status; ``information`` does not."""

    system: System
    backend: Backend
    groups: tuple[Finding, ...]
    needs: tuple[Finding, ...]
    information: tuple[Finding, ...]
    # A process that starts here joins what others have loaded: nothing of the above is its need.
    joins: bool = False

    @property
    def verdict(self) -> Verdict:
        """Yes: all works. No: something is missing. Unknown: could not tell."""
        if self.joins:
            return Verdict.YES
        return worst(finding.support for finding in self.groups + self.needs).verdict

    @property
    def exit_status(self) -> int:
        """0 all works, 1 something is missing, 2 could not tell."""
        return {Verdict.YES: 0, Verdict.NO: 1, Verdict.UNKNOWN: 2}[self.verdict]
