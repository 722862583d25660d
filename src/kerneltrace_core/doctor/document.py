"""The diagnosis as JSON.

Keys are stable; new ones may be added, ``format`` counts up when one changes its meaning::

    format       1
    status       "works" | "missing" | "unknown"
    exit_status  0 | 1 | 2
    backend      {"auto": "bpf" | "procfs" | null, "certain": bool, "reason": str}
    system       {"kernel", "machine", "python", "executable": str, "uid": int,
                  "missing_capabilities": [str], "environment": {name: value}}
    groups       [finding]  sched, syscalls, block, net, faults
    needs        [finding]  what every group needs
    information  [finding]  does not count for the status

    finding      {"name": str, "verdict": "yes" | "no" | "unknown", "reason": str, "fix": str,
                  "errno": int | null, "required": bool, "tracepoints": [finding]}
"""

from __future__ import annotations

from typing import Any

from kerneltrace_core.doctor.diagnosis import Diagnosis, Finding
from kerneltrace_core.kernel.support import Verdict

__all__ = ["as_document", "not_linux_document"]

FORMAT = 1
STATUS = {Verdict.YES: "works", Verdict.NO: "missing", Verdict.UNKNOWN: "unknown"}


def as_document(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the diagnosis as data that ``json.dumps`` takes."""
    system = diagnosis.system
    return {
        "format": FORMAT,
        "status": STATUS[diagnosis.verdict],
        "exit_status": diagnosis.exit_status,
        "backend": {
            "auto": diagnosis.backend.name,
            "certain": diagnosis.backend.certain,
            "reason": diagnosis.backend.reason,
        },
        "system": {
            "kernel": system.kernel,
            "machine": system.machine,
            "python": system.python,
            "executable": system.executable,
            "uid": system.uid,
            "missing_capabilities": list(system.missing_capabilities),
            "environment": dict(system.overrides),
        },
        "groups": [_finding(finding) for finding in diagnosis.groups],
        "needs": [_finding(finding) for finding in diagnosis.needs],
        "information": [_finding(finding) for finding in diagnosis.information],
    }


def not_linux_document(platform: str) -> dict[str, Any]:
    """Return the same keys where there is no Linux to examine."""
    return {
        "format": FORMAT,
        "status": STATUS[Verdict.NO],
        "exit_status": 1,
        "backend": {"auto": None, "certain": True, "reason": f"Linux only (this is {platform})"},
        "system": {},
        "groups": [],
        "needs": [],
        "information": [],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "verdict": finding.support.verdict.value,
        "reason": finding.support.reason,
        "fix": finding.support.remedy,
        "errno": finding.support.errno,
        "required": finding.required,
        "tracepoints": [_finding(part) for part in finding.parts],
    }
