"""Compare PyContext_AddWatcher (CPython 3.14) with the step as the engine of attribution.

usage: python3.14 benchmarks/context_watcher.py

Rounds of the same loop, interleaved: tasks that suspend with `sleep(0)`, untraced, each under a
step, and each with a context variable that a watcher looks up. Prints ns per suspension, medians.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from kerneltrace_core._native import _step
from kerneltrace_core.requests import layout
from kerneltrace_core.requests.shadow import ShadowRegion

SOURCE = Path(__file__).with_name("context_watcher.c")
TASKS, SUSPENSIONS, ROUNDS = 16, 2_000, 15
Handler = Callable[[], Coroutine[Any, Any, None]]


def build(folder: Path) -> Any:
    """Compile and import the watcher for this interpreter."""
    target = folder / f"context_watcher{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_path("include")
    command = ["cc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", f"-I{include}"]
    subprocess.run([*command, "-o", str(target), str(SOURCE)], check=True)
    spec = importlib.util.spec_from_file_location("context_watcher", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def suspend() -> None:
    """Give the loop back, as often as is measured."""
    for _ in range(SUSPENSIONS):
        await asyncio.sleep(0)


def measure(wrap: Callable[[Handler, int], Awaitable[None]]) -> float:
    """Return the CPU ns of one suspension of one of several tasks."""

    async def main() -> float:
        tasks = [asyncio.ensure_future(wrap(suspend, number)) for number in range(1, TASKS + 1)]
        begun = time.thread_time_ns()
        await asyncio.gather(*tasks)
        return (time.thread_time_ns() - begun) / (TASKS * SUSPENSIONS)

    return asyncio.run(main())


async def untraced(handler: Handler, _number: int) -> None:
    """Run it as it is."""
    await handler()


def stepped() -> float:
    """Measure with each task under a step."""
    shadow = ShadowRegion()
    region = _step.Region(
        shadow.memory,
        shadow.address,
        layout.THREADS,
        layout.SLOTS,
        layout.SLOTS_OFFSET,
        layout.SLOT_BYTES,
        lambda: region.bind(0),
    )

    async def wrap(handler: Handler, _number: int) -> None:
        record = region.open()
        await record.step(handler())
        record.close()

    return measure(wrap)


def watched(module: Any) -> tuple[float, int]:
    """Measure with a watcher, which looks a variable up at each switch; and the switches."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("request")

    async def wrap(handler: Handler, number: int) -> None:
        variable.set(number)
        await handler()

    module.watch(variable)
    try:
        took = measure(wrap)
    finally:
        switches, _ = module.unwatch()
    return took, switches


def main() -> None:
    """Print the medians."""
    if sys.version_info < (3, 14):
        raise SystemExit("context_watcher: PyContext_AddWatcher needs Python 3.14")
    with tempfile.TemporaryDirectory() as folder:
        module = build(Path(folder))
        times: dict[str, list[float]] = {"untraced": [], "step": [], "watcher": []}
        switches = 0
        for _ in range(ROUNDS):
            times["untraced"].append(measure(untraced))
            times["step"].append(stepped())
            took, switches = watched(module)
            times["watcher"].append(took)
    plain = statistics.median(times["untraced"])
    print(sys.version.split()[0])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:<9} {median:7.1f} ns per suspension, {median - plain:+6.1f}")
    print(f"the watcher was called {switches / (TASKS * SUSPENSIONS):.2f} times per suspension")


if __name__ == "__main__":
    main()
