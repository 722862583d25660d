"""Rounds of a C loop: untraced, then traced in each mode, by the traced thread and a bystander."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.loops import compiled
from benchmarks.machine import Solitude
from benchmarks.rounds import Result, Samples, Size
from benchmarks.tracing import tracing

from kerneltrace_core.requests import KernelStats, engine

REPEATS = 3


def measure(
    loop: str, modes: Mapping[str, Mapping[str, Any]], size: Size, rounds: int, times: int
) -> Result:
    """Return the samples, ``base`` and each mode's by name; those of a bystander begin with it.

    In a round each figure is the least of three: what disturbs a loop only makes it longer.
    """
    samples: Samples = {}
    result = Result(samples={"ns": samples})
    disturbed = 0
    solitude = Solitude(size.patience)

    def take(own: Any, bystander: Any, name: str) -> None:
        for who, call in (("registered", own), ("bystander", bystander)):
            took = min(call(loop, times) for _ in range(REPEATS))
            samples.setdefault(f"{who}_{name}", []).append(took)

    with compiled() as (own, bystander):
        own(loop, times)
        bystander(loop, times)
        for _ in range(rounds):
            for mode, options in modes.items():
                disturbed += not solitude.wait()
                take(own, bystander, f"{mode}_base")
                with tracing(size.backend, **options) as tracer:
                    stats: KernelStats = tracer.open()
                    previous = engine.push(stats.record)
                    try:
                        take(own, bystander, mode)
                    finally:
                        engine.pop(previous)
                        tracer.finish(stats)
    if disturbed:
        result.notes.append(
            f"another process was tracing in {disturbed} of {rounds * len(modes)} rounds"
        )
    return result
