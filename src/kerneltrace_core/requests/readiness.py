"""When a suspended coroutine became ready, where that can be known exactly: asyncio.sleep."""

from __future__ import annotations

import asyncio
import math
from typing import Any

__all__ = ["ready_at"]

SLEEP = asyncio.sleep.__code__
TIMER = "h"  # asyncio.sleep's local variable: the handle of its timer, in 3.10 to 3.14
AWAITS = ("cr_await", "gi_yieldfrom", "ag_await")
DEPTH_MAX = 100


def ready_at(coroutine: Any) -> int:
    """Return the CLOCK_MONOTONIC ns at which its timer was due, 0 if it does not sleep.

    Asked only when a loop wait is in doubt: something held the loop for a while. Walks the chain
    of awaits to its end, some microseconds. The timer's own time says when the task was ready;
    that the loop noticed later is the wait.
    """
    for _ in range(DEPTH_MAX):
        if getattr(coroutine, "cr_code", None) is SLEEP:
            frame = coroutine.cr_frame
            handle = frame.f_locals.get(TIMER) if frame is not None else None
            when = handle.when() if isinstance(handle, asyncio.TimerHandle) else 0.0
            return int(when * 1e9) if when < math.inf else 0  # anyio waits for ever by sleep(inf)
        names = (name for name in AWAITS if hasattr(coroutine, name))
        awaited = getattr(coroutine, next(names, AWAITS[0]), None)
        if awaited is None:
            return 0
        coroutine = awaited
    return 0
