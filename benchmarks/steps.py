"""What a step costs: one resumption of a coroutine that belongs to a request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import ModuleType
from typing import Any

from benchmarks.rounds import Result, Size, Unavailable, cpu_ns, interleave

from kerneltrace_core.requests import layout, pystep
from kerneltrace_core.requests.shadow import ShadowRegion

STEPS = 20_000


class _Yield:
    def __await__(self) -> Generator[None, None, None]:
        yield


async def _spin(times: int) -> None:
    suspend = _Yield()
    for _ in range(times):
        await suspend


async def _await(coroutine: Any) -> None:
    await coroutine


def _resume(coroutine: Coroutine[Any, Any, None], times: int) -> None:
    send = coroutine.send
    for _ in range(times):
        send(None)
    coroutine.close()


def _variant(engine: ModuleType | None, times: int) -> Callable[[], float]:
    if engine is None:
        return lambda: cpu_ns(lambda count: _resume(_await(_spin(count)), count), times)
    shadow = ShadowRegion()
    region: pystep.Region = engine.Region(
        shadow.memory,
        shadow.address,
        layout.THREADS,
        layout.SLOTS,
        layout.SLOTS_OFFSET,
        layout.SLOT_BYTES,
        lambda: region.bind(0),
    )

    def measure() -> float:
        record = region.open()
        took = cpu_ns(lambda count: _resume(_await(record.step(_spin(count))), count), times)
        record.close()
        return took

    return measure


def run(size: Size) -> Result:
    """Compare a bare coroutine with one in a step of the C extension and of its twin."""
    try:
        from kerneltrace_core._native import _step
    except ImportError as error:
        raise Unavailable(f"the step extension is not built: {error}") from error
    times = size.times(STEPS)
    variants = {
        "bare": _variant(None, times),
        "c": _variant(_step, times),
        "python": _variant(pystep, times),
    }
    samples = interleave(variants, size.limit(24))
    result = Result(samples={"ns": samples})
    result.median("bare", "resume a bare coroutine", samples["bare"], "ns")
    result.added("c", "the same in a step (C extension)", samples, ("c", "bare"), "ns added")
    result.added("python", "the same in a step (Python)", samples, ("python", "bare"), "ns added")
    return result
