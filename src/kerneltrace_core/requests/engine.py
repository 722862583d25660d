"""Choose the step engine: the C extension, or its twin where that is missing."""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = [
    "IMPLEMENTATION",
    "Exchange",
    "Reading",
    "Record",
    "Region",
    "Step",
    "current",
    "difference",
    "pop",
    "push",
    "read_cell",
]


def _choose() -> tuple[str, ModuleType]:
    """Return the engine's name and module. KERNELTRACE_PURE_PYTHON=1 asks for the twin."""
    if os.environ.get("KERNELTRACE_PURE_PYTHON") != "1":
        try:
            from kerneltrace_core._native import _step
        except ImportError:
            pass  # not built here (no compiler, another system), or not for this interpreter
        else:
            return "c", _step
    from kerneltrace_core.requests import pystep

    return "python", pystep


IMPLEMENTATION, _chosen = _choose()

if TYPE_CHECKING:
    # One name for both: the twin has the same API.
    from kerneltrace_core.requests.pystep import (
        Exchange,
        Reading,
        Record,
        Region,
        Step,
        current,
        difference,
        pop,
        push,
        read_cell,
    )
else:
    Exchange = _chosen.Exchange
    Reading = _chosen.Reading
    Record = _chosen.Record
    Region = _chosen.Region
    Step = _chosen.Step
    current = _chosen.current
    difference = _chosen.difference
    pop = _chosen.pop
    push = _chosen.push
    read_cell = _chosen.read_cell
