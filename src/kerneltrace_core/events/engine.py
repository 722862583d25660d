"""Choose the event engine: the C extension, or its twin where that is missing."""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["IMPLEMENTATION", "REST", "Field", "KernelEvent", "Reader", "Selector", "pack"]

REST = -1  # a size or a count that the record's own length decides


def _choose() -> tuple[str, ModuleType]:
    """Return the engine's name and module. KERNELTRACE_PURE_PYTHON=1 asks for the twin."""
    if os.environ.get("KERNELTRACE_PURE_PYTHON") != "1":
        try:
            from kerneltrace_core._native import _events
        except ImportError:
            pass  # not built here (no compiler, another system), or not for this interpreter
        else:
            return "c", _events
    from kerneltrace_core.events import pyevents

    return "python", pyevents


IMPLEMENTATION, _chosen = _choose()

if TYPE_CHECKING:
    # One name for both: the twin has the same API.
    from kerneltrace_core.events.pyevents import Field, KernelEvent, Reader, Selector, pack
else:
    Field = _chosen.Field
    KernelEvent = _chosen.KernelEvent
    Reader = _chosen.Reader
    Selector = _chosen.Selector
    pack = _chosen.pack
