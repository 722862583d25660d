"""How many requests per second Django keeps: gunicorn and uvicorn under wrk, all in one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import fresh, server
from benchmarks.machine import Solitude
from benchmarks.rounds import Result, Samples, Size, Unavailable, ratios

APP = "benchmarks.django_app:application"
# One worker, which the requests that switch tracing can address.
SETTINGS: dict[str, tuple[str, str, list[str]]] = {
    "gthread": (
        "gunicorn gthread, sync view",
        "wsgi",
        ["gunicorn", APP, "--workers", "1", "--threads", "4", "--no-control-socket", "--bind"],
    ),
    "uvicorn": (
        "uvicorn, async view",
        "asgi",
        ["uvicorn", APP, "--lifespan", "off", "--no-access-log", "--loop", "uvloop", "--port"],
    ),
}


class DjangoServer(server.Server):
    """gunicorn or uvicorn with one worker, on a CPU of its own where there are two."""

    def __init__(self, backend: str, setting: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.cpus = sorted(os.sched_getaffinity(0))
        _, interface, command = SETTINGS[setting]
        address = f"127.0.0.1:{self.port}" if interface == "wsgi" else str(self.port)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command, address],
            env=fresh.environment(BENCH_BACKEND=backend, BENCH_INTERFACE=interface),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.sched_setaffinity(self._process.pid, self.cpus[:1])

    def cpu_seconds(self) -> float:
        """Return the CPU time that all threads of the worker have used."""
        used: int = json.loads(self.get("/tracing/cpu"))["cpu_ns"]
        return used / 1e9


@contextmanager
def _serving(backend: str, setting: str) -> Iterator[DjangoServer]:
    running = DjangoServer(backend, setting)
    try:
        running.wait()
        yield running
    finally:
        running.close()


def _samples(size: Size, setting: str) -> Samples:
    samples: Samples = {}
    alone = Solitude(size.patience)
    seconds = server.SECONDS if size.scale > 0.1 else 0.1
    for _ in range(size.times(server.SERVERS)):
        with _serving(size.backend, setting) as running:
            for variant in server.VARIANTS:
                warm_up = server.WARM_UP_SECONDS * size.scale + 0.1
                server.visit(running, size, alone, [variant], warm_up)
            for number in range(size.limit(server.ROUNDS)):
                order = list(server.VARIANTS)[:: -1 if number % 2 else 1]
                took = server.visit(running, size, alone, order, seconds)
                for name, values in took.items():
                    samples.setdefault(name, []).extend(values)
    return samples


def run(size: Size) -> Result:
    """Load plain, traced and OpenTelemetry in turn, with several servers one after the other."""
    if not server.WRK or not hasattr(os, "sched_setaffinity"):
        raise Unavailable("needs Linux and wrk")
    result = Result()
    for setting, (what, _, _) in SETTINGS.items():
        samples = result.samples[setting] = _samples(size, setting)
        for variant, label in server.NAMES.items():
            name = f"{variant}_rate"
            result.median(f"{setting}_{name}", f"{what}: {label}", samples[name], "requests/s")
        for variant, budget in (("traced", server.KEPT), ("otel", None)):
            result.median(
                f"{setting}_{variant}_kept",
                f"{what}: kept by {server.NAMES[variant]}",
                ratios(samples, f"{variant}_rate", "plain_rate"),
                "ratio",
                budget=budget,
                at_least=True,
            )
        label = f"{what}: CPU time of the server per request, plain"
        result.median(f"{setting}_plain_cpu", label, samples["plain_cpu_us"], "us")
        for variant in ("traced", "otel"):
            label = f"{what}: the same, {server.NAMES[variant]}"
            pair = (f"{variant}_cpu_us", "plain_cpu_us")
            result.added(f"{setting}_{variant}_cpu", label, samples, pair, "us added")
        label = f"{what}: kept by kerneltrace, by CPU time"
        kept = ratios(samples, "plain_cpu_us", "traced_cpu_us")
        result.median(f"{setting}_traced_kept_cpu", label, kept, "ratio")
    return result
