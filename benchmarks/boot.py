"""What it costs to start: time, memory, and for how long the event loop stands still."""

from __future__ import annotations

from benchmarks import fresh
from benchmarks.rounds import Result, Samples, Size, Unavailable

BOOT_MS = 60.0
RESIDENT_MIB = 6.0


def _gather(size: Size, rounds: int) -> tuple[Samples, Samples, Samples]:
    plain: Samples = {}
    traced: Samples = {}
    beside: Samples = {}
    for number in range(rounds + 1):
        for into, function, backend in (
            (plain, "start", None),
            (traced, "start", size.backend),
            (beside, "start_beside_loop", size.backend),
        ):
            measured = fresh.call("boot_app", function, backend=backend)
            if number:  # the first round writes byte code and fills caches
                for name, value in measured.items():
                    into.setdefault(name, []).append(value)
    return plain, traced, beside


def run(size: Size) -> Result:
    """Start fresh processes, with and without, in turn."""
    try:
        plain, traced, beside = _gather(size, size.limit(11))
    except RuntimeError as error:
        raise Unavailable(str(error).splitlines()[-1]) from error
    result = Result(samples={"plain": plain, "traced": traced, "beside_loop": beside})
    whole = [a + b for a, b in zip(traced["import_ms"], traced["start_ms"], strict=True)]
    result.median("boot", "import, load and attach", whole, "ms", budget=BOOT_MS)
    result.median("import", "of it: import kerneltrace_asgi", traced["import_ms"], "ms")
    result.median("start", "of it: load and attach", traced["start_ms"], "ms")
    label = "longest step of an event loop while start_soon() runs"
    result.median("loop_block", label, beside["during_ms"], "ms")
    result.median("loop_base", "longest step of it without", beside["base_ms"], "ms")
    for name, label, budget in (
        ("settled", "resident memory after start", RESIDENT_MIB),
        ("served", "resident memory after 1000 requests", RESIDENT_MIB),
        ("peak", "highest resident memory ever (transient)", None),
    ):
        pairs = zip(traced[f"{name}_kib"], plain[f"{name}_kib"], strict=True)
        result.median(name, label, [(a - b) / 1024 for a, b in pairs], "MiB added", budget=budget)
    return result
