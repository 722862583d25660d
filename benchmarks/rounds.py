"""Interleaved rounds: every variant once per round, so that a noisy minute hits all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Samples = dict[str, list[float]]


class Unavailable(Exception):
    """Say what this machine lacks that a benchmark needs."""


@dataclass(frozen=True)
class Size:
    """How long to measure.

    ``backend`` is what stands for "traced": smoke runs need no privilege. ``patience`` are the
    seconds that each benchmark waits for other tracers to end.
    """

    name: str
    rounds: int
    scale: float
    patience: float
    backend: str = "bpf"

    def times(self, full: int) -> int:
        """Return how often to repeat what a full run repeats ``full`` times."""
        return max(1, round(full * self.scale))

    def limit(self, full: int) -> int:
        """Return the number of rounds of a benchmark that takes at most ``full``."""
        return min(self.rounds, full)


FULL = Size("full", rounds=24, scale=1.0, patience=15)
QUICK = Size("quick", rounds=4, scale=0.3, patience=2)
SMOKE = Size("smoke", rounds=1, scale=0.01, patience=0, backend="procfs")


@dataclass(frozen=True)
class Figure:
    """One number of a result: a median over rounds with its quartiles, and the budget it has.

    ``at_least`` tells a budget that is a floor from the usual ceiling.
    """

    label: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    budget: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Say whether the budget is met; None without one."""
        if self.budget is None:
            return None
        return self.value >= self.budget if self.at_least else self.value <= self.budget

    def as_dict(self) -> dict[str, Any]:
        """Return what results.json keeps."""
        return {**asdict(self), "met": self.met}


@dataclass
class Result:
    """Figures of one benchmark by name, in the order of its table, and the samples behind them."""

    figures: dict[str, Figure] = field(default_factory=dict)
    samples: dict[str, Samples] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def median(
        self, name: str, label: str, values: Sequence[float], unit: str, **more: Any
    ) -> None:
        """Add the median of some values."""
        low, middle, high = quartiles(values)
        self.figures[name] = Figure(label, middle, unit, low, high, **more)

    def added(
        self, name: str, label: str, samples: Samples, pair: tuple[str, str], unit: str, **more: Any
    ) -> None:
        """Add by how much the first of a pair exceeds the second, round by round."""
        self.median(name, label, differences(samples, *pair), unit, **more)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median, upper quartile."""
    if len(values) < 2:
        return (values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def differences(samples: Samples, name: str, base: str) -> list[float]:
    """Return what ``name`` took more than ``base`` in each round."""
    return [a - b for a, b in zip(samples[name], samples[base], strict=True)]


def ratios(samples: Samples, name: str, base: str) -> list[float]:
    """Return ``name`` over ``base`` in each round."""
    # A smoke run on a busy machine may have served nothing.
    return [a / (b or math.inf) for a, b in zip(samples[name], samples[base], strict=True)]


def interleave(variants: Mapping[str, Callable[[], float]], rounds: int) -> Samples:
    """Measure each variant once per round, every other round in reverse order, after a warm-up."""
    samples: Samples = {name: [] for name in variants}
    for measure in variants.values():
        measure()
    for number in range(rounds):
        order = list(variants)[:: -1 if number % 2 else 1]
        for name in order:
            samples[name].append(variants[name]())
    return samples


def cpu_ns(work: Callable[[int], object], times: int) -> float:
    """Return the CPU time of this thread for one of ``times`` pieces of work, in ns.

    What blocks nowhere takes as long by the clock, on a machine that has nothing else to do.
    """
    begin = time.thread_time_ns()
    work(times)
    return (time.thread_time_ns() - begin) / times
