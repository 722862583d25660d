"""The header that records of our own macros begin with: ``struct kt_header``."""

from __future__ import annotations

from kerneltrace_core.events.declare import kernel_event
from kerneltrace_core.events.engine import KernelEvent
from kerneltrace_core.events.scalars import u16, u32, u64

__all__ = ["EventHeader"]


@kernel_event("kt_header")
class EventHeader(KernelEvent):
    """What every event of an object that includes ``kerneltrace/kt_event.h`` says of itself.

    ``time_ns``: CLOCK_MONOTONIC. ``request``: 0, where no request is known.
    """

    type: u16
    size: u16
    cpu: u32
    time_ns: u64
    request: u64
