"""What a context switch costs more, for the threads that are traced and for all others."""

from __future__ import annotations

from typing import Any

from benchmarks import kernel_rounds
from benchmarks.rounds import Result, Size
from benchmarks.tracing import ALL_GROUPS

TIMES = 6_000
MODES: dict[str, dict[str, Any]] = {"sched": {"probes": ("sched",)}, "all": {"probes": ALL_GROUPS}}
LABELS = {"sched": "group sched alone", "all": "all groups (a switch is two system calls here)"}
WHO = {"bystander": "another process", "registered": "one of the two threads traced"}


def run(size: Size) -> Result:
    """Measure two threads that hand a byte to each other, in pairs around each start."""
    result = kernel_rounds.measure("switch_ns", MODES, size, size.limit(15), size.times(TIMES))
    samples = result.samples["ns"]
    result.median("base", "untraced: write, read and switch", samples["registered_all_base"], "ns")
    for mode, what in LABELS.items():
        for who, subject in WHO.items():
            name = f"{who}_{mode}"
            pair = (name, f"{name}_base")
            result.added(name, f"{what}: {subject}", samples, pair, "ns added")
    return result
