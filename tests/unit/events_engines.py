"""Both event engines, and frames as rings hand them up."""

from __future__ import annotations

import importlib
import struct
from types import ModuleType
from typing import Any

import pytest

NAMES = {"c": "kerneltrace_core._native._events", "python": "kerneltrace_core.events.pyevents"}


def load_engine(name: str) -> ModuleType:
    """Return one implementation's module; skip where the extension is not built."""
    if name == "c":
        return pytest.importorskip(NAMES["c"], reason="_events is not built")
    return importlib.import_module(NAMES["python"])


def frame(payload: bytes, origin: int = 0) -> bytes:
    """Return one record as a ring hands it up."""
    return struct.pack("=II", len(payload), origin) + payload + bytes(-len(payload) % 8)


def frames_of(*payloads: bytes) -> bytes:
    """Return records one after the other, from CPU 0."""
    return b"".join(map(frame, payloads))


def make_event(engine: Any, size: int, exact: bool = True, **fields: Any) -> Any:
    """Return an event class with these fields."""
    namespace = {
        "__slots__": (),
        "_size_": size,
        "_exact_": exact,
        "_fields_": tuple(fields),
        **fields,
    }
    return type("Event", (engine.KernelEvent,), namespace)
