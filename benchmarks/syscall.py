"""What a system call costs more, for the threads that are traced and for all other processes."""

from __future__ import annotations

from typing import Any

from benchmarks import kernel_rounds
from benchmarks.rounds import Result, Size
from benchmarks.tracing import ALL_GROUPS

TIMES = 60_000
BYSTANDER_NS = 160.0
REGISTERED_NS = 250.0
# Clocks of a guest and caches give a few ns of either sign; nothing attached costs nothing.
NOISE_NS = 5.0

MODES: dict[str, dict[str, Any]] = {
    "time": {"probes": ALL_GROUPS},
    "second": {"probes": ALL_GROUPS, "second_copies": True},
    "count": {"probes": ALL_GROUPS, "syscalls": "count"},
    "without": {"probes": tuple(group for group in ALL_GROUPS if group != "syscalls")},
}
BUDGETS = {
    "bystander_time": BYSTANDER_NS,
    "registered_time": REGISTERED_NS,
    "bystander_second": BYSTANDER_NS,
    "registered_second": REGISTERED_NS,
    "bystander_without": NOISE_NS,
}
LABELS = {
    "time": "all groups",
    "second": "all groups, with second copies",
    "count": 'syscalls="count"',
    "without": "without the group syscalls",
}
WHO = {"bystander": "another process", "registered": "a traced thread"}


def run(size: Size) -> Result:
    """Measure getppid in a tight loop, in pairs around each start."""
    result = kernel_rounds.measure("syscall_ns", MODES, size, size.limit(15), size.times(TIMES))
    samples = result.samples["ns"]
    result.median("base", "untraced", samples["registered_time_base"], "ns")
    for mode, what in LABELS.items():
        for who, subject in WHO.items():
            name = f"{who}_{mode}"
            label = f"{what}: {subject}"
            pair = (name, f"{name}_base")
            result.added(name, label, samples, pair, "ns added", budget=BUDGETS.get(name))
    return result
