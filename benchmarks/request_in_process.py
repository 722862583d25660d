"""What tracing adds to a request that does nothing, without a server in the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from benchmarks import apps, fresh
from benchmarks.machine import Solitude
from benchmarks.rounds import Result, Samples, Size, Unavailable, cpu_ns, quartiles, ratios
from benchmarks.tracing import tracing

REQUESTS = 400
ADDED_US = 4.0
OTEL_PART = 1 / 30
ROUTES = {"never": (apps.NEVER, "never suspends"), "once": (apps.ONCE, "suspends once")}


def _served(loop: asyncio.AbstractEventLoop, app: Any, path: str, times: int) -> float:
    """Return us per request."""

    def serve(count: int) -> None:
        loop.run_until_complete(apps.requests(app, path, count))

    serve(max(1, times // 10))
    return cpu_ns(serve, times) / 1000


def _variants(backend: str) -> dict[str, tuple[Any, Callable[[], AbstractContextManager[Any]]]]:
    """Return each application with what must be on while it serves."""
    app, fastapi = apps.plain(), apps.fastapi()
    logged = logging.getLogger("kerneltrace.request")
    logged.addHandler(logging.NullHandler())
    logged.propagate = False

    class Logging(AbstractContextManager[None]):
        def __init__(self) -> None:
            self._tracing = tracing(backend)

        def __enter__(self) -> None:
            logged.setLevel(logging.INFO)
            self._tracing.__enter__()

        def __exit__(self, *error: Any) -> None:
            self._tracing.__exit__(*error)
            logged.setLevel(logging.WARNING)

    logged.setLevel(logging.WARNING)
    return {
        "plain": (app, nullcontext),
        "traced": (apps.traced(app, backend=backend), lambda: tracing(backend)),
        "logged": (apps.traced(app, backend=backend), Logging),
        "procfs": (apps.traced(app, backend="procfs"), lambda: tracing("procfs")),
        "fastapi": (fastapi, nullcontext),
        "fastapi_traced": (apps.traced(fastapi, backend=backend), lambda: tracing(backend)),
        "otel": (apps.otel(app, batch=False), nullcontext),
        "otel_batch": (apps.otel(app, batch=True), nullcontext),
    }


def measure(
    backend: str, rounds: int, times: int, patience: float, names: list[str]
) -> dict[str, Samples]:
    """Return us per request by route, variant and round."""
    variants = {name: each for name, each in _variants(backend).items() if name in names}
    samples: dict[str, Samples] = {route: {name: [] for name in variants} for route in ROUTES}
    loop = asyncio.new_event_loop()
    alone = Solitude(patience)
    try:
        for number in range(rounds + 1):
            alone.wait()
            for name, (app, on) in variants.items():
                with on():
                    for route, (path, _) in ROUTES.items():
                        took = _served(loop, app, path, times)
                        if number:  # the first round warms up
                            samples[route][name].append(took)
    finally:
        loop.close()
    return samples


def run(size: Size) -> Result:
    """Measure all variants in one process, the pure-Python step in one of its own."""
    result = Result()
    rounds, times = size.limit(16), size.times(REQUESTS)
    arguments: dict[str, Any] = {
        "rounds": rounds,
        "times": times,
        "backend": size.backend,
        "patience": size.patience,
    }
    names = ["plain", "traced", "logged", "procfs", "otel", "otel_batch"]
    names += ["fastapi", "fastapi_traced"]
    try:
        all_samples = fresh.call("request_in_process", "measure", names=names, **arguments)
        pure = fresh.call(
            "request_in_process",
            "measure",
            {"KERNELTRACE_PURE_PYTHON": "1"},
            names=["plain", "traced"],
            **arguments,
        )
    except RuntimeError as error:
        raise Unavailable(str(error).splitlines()[-1]) from error
    for route, (_, what) in ROUTES.items():
        samples = all_samples[route]
        result.samples[route] = samples
        result.samples[f"{route}_pure"] = pure[route]
        result.median(f"{route}_plain", f"{what}: plain Starlette", samples["plain"], "us")
        for name, label, budget in (
            ("traced", "kerneltrace, all groups", ADDED_US),
            ("logged", "the same, and a log record of it (handler that drops it)", None),
            ("procfs", "kerneltrace, procfs backend", None),
            ("otel", "OpenTelemetry, SimpleSpanProcessor", None),
            ("otel_batch", "OpenTelemetry, BatchSpanProcessor", None),
        ):
            pair = (name, "plain")
            label = f"{what}: {label}"
            result.added(f"{route}_{name}", label, samples, pair, "us added", budget=budget)
        label = f"{what}: kerneltrace without its C extension"
        result.added(f"{route}_pure", label, pure[route], ("traced", "plain"), "us added")
        label = f"{what}: kerneltrace, FastAPI instead of Starlette"
        pair = ("fastapi_traced", "fastapi")
        result.added(f"{route}_fastapi", label, samples, pair, "us added")
        # The cheaper of the two, so that nothing is claimed that a setting could undo.
        cheaper = min(("otel", "otel_batch"), key=lambda name: quartiles(samples[name])[1])
        of_otel: Samples = {
            name: [each - base for each, base in zip(samples[name], samples["plain"], strict=True)]
            for name in ("traced", cheaper)
        }
        result.median(
            f"{route}_part_of_otel",
            f"{what}: added, as a part of what OpenTelemetry adds",
            ratios(of_otel, "traced", cheaper),
            "ratio",
            budget=OTEL_PART,
        )
    return result
