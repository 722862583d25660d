"""How many requests per second a server keeps: uvicorn under wrk, all variants in one process."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import apps, fresh
from benchmarks.machine import Solitude
from benchmarks.rounds import Result, Samples, Size, Unavailable, ratios

WRK = shutil.which("wrk") or ""
CONNECTIONS = 16
SECONDS = 1.0
SERVERS = 3
ROUNDS = 4
WARM_UP_SECONDS = 0.5
KEPT = 0.97
# Patience, not a bound: with ASan, on a busy machine, a start takes most of it.
START_SECONDS = 60.0
# The one with the least to do, where tracing weighs most; one as people run it; and that with a
# request that does something.
SETTINGS: dict[str, tuple[str, list[str], str]] = {
    "bare": ("Starlette, no access log", ["--no-access-log"], apps.NEVER),
    "usual": ("FastAPI, access log", [], apps.NEVER),
    "working": ("FastAPI, access log, half a millisecond of JSON", [], apps.WORK),
}
NAMES = {"plain": "plain", "traced": "kerneltrace", "otel": "OpenTelemetry"}
VARIANTS = tuple(NAMES)
# What the least middleware costs: one that hands everything on, and does nothing.
NOTHING = "nothing"
RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
DONE = re.compile(r"(\d+) requests in")
FAILED = re.compile(r"Non-2xx|Socket errors")


class Server:
    """uvicorn with one worker, on a CPU of its own where there are two."""

    path = apps.NEVER

    def __init__(self, backend: str, setting: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.cpus = sorted(os.sched_getaffinity(0))
        self.path = SETTINGS[setting][2]
        application = "bare" if setting == "bare" else "usual"
        command = [sys.executable, "-m", "uvicorn", f"benchmarks.server_app:{application}"]
        command += ["--port", str(self.port), "--lifespan", "off"]
        command += ["--loop", "uvloop", "--http", "httptools", *SETTINGS[setting][1]]
        self._process = subprocess.Popen(
            command,
            env=fresh.environment(BENCH_BACKEND=backend),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.sched_setaffinity(self._process.pid, self.cpus[:1])

    def wait(self) -> None:
        """Return when it answers."""
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self.get(f"/plain{apps.NEVER}")
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise Unavailable("uvicorn does not start") from None
                time.sleep(0.05)

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        """Return the CPU time that the server has used."""
        stat = f"/proc/{self._process.pid}/schedstat"
        with open(stat) as file:
            return int(file.read().split()[0]) / 1e9

    def load(self, variant: str, seconds: float) -> tuple[float, float]:
        """Return requests per second, and us of the server's CPU time for each."""
        cpu = self.cpus[-1]
        url = f"http://127.0.0.1:{self.port}/{variant}{self.path}"
        # wrk takes whole seconds; it ends in good order when interrupted.
        command = [WRK, "-t1", f"-c{CONNECTIONS}", "-d60s", url]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            os.sched_setaffinity(process.pid, [cpu])
            before = self.cpu_seconds()
            time.sleep(seconds)
            _wait_until_it_catches(process, signal.SIGINT)
            text = _interrupt(process)
            used = self.cpu_seconds() - before
        finally:
            process.kill()
            process.wait()
        rate, done = RATE.search(text), DONE.search(text)
        if rate is None or done is None or FAILED.search(text):
            raise Unavailable(f"wrk: {text.strip()}")
        return float(rate[1]), used / max(1, int(done[1])) * 1e6

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=START_SECONDS)


def _wait_until_it_catches(process: subprocess.Popen[str], number: int) -> None:
    """Wait until a signal has a handler in a process: before, it would end without a word."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with open(f"/proc/{process.pid}/status") as file:
            caught = next(line for line in file if line.startswith("SigCgt:")).split()[1]
        if int(caught, 16) & 1 << number - 1:
            return
        time.sleep(0.01)


def _interrupt(process: subprocess.Popen[str]) -> str:
    """End wrk, and return what it says. It sleeps on if the signal comes just before its sleep."""
    for _ in range(int(START_SECONDS)):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=1)[0]
        except subprocess.TimeoutExpired:
            continue
    raise Unavailable(f"wrk: it does not end within {START_SECONDS:.0f} s")


@contextmanager
def _server(backend: str, setting: str) -> Iterator[Server]:
    server = Server(backend, setting)
    try:
        server.wait()
        yield server
    finally:
        server.close()


def visit(server: Server, size: Size, alone: Solitude, order: list[str], seconds: float) -> Samples:
    took: Samples = {}
    for variant in order:
        if variant == "traced":
            state = json.loads(server.get("/tracing/on"))
            if state["backend"] != size.backend:
                raise Unavailable(f"backend {size.backend} does not start here (see make doctor)")
        else:
            alone.wait()
        try:
            rate, cpu_us = server.load(variant, seconds)
        finally:
            if variant == "traced":
                server.get("/tracing/off")
        took[f"{variant}_rate"], took[f"{variant}_cpu_us"] = [rate], [cpu_us]
    return took


def _samples(size: Size, setting: str) -> Samples:
    samples: Samples = {}
    alone = Solitude(size.patience)
    seconds = max(0.1, SECONDS * size.scale)
    for _ in range(size.times(SERVERS)):
        with _server(size.backend, setting) as server:
            for variant in (*VARIANTS, NOTHING):
                visit(server, size, alone, [variant], WARM_UP_SECONDS * size.scale + 0.1)
            for number in range(size.limit(ROUNDS)):
                order = [*VARIANTS, NOTHING][:: -1 if number % 2 else 1]
                for name, values in visit(server, size, alone, order, seconds).items():
                    samples.setdefault(name, []).extend(values)
    return samples


def run(size: Size) -> Result:
    """Load plain, traced and OpenTelemetry in turn, with several servers one after the other."""
    if not WRK or not hasattr(os, "sched_setaffinity"):
        raise Unavailable("needs Linux and wrk")
    result = Result()
    for setting, (what, _, _) in SETTINGS.items():
        samples = result.samples[setting] = _samples(size, setting)
        for variant, label in NAMES.items():
            name = f"{variant}_rate"
            result.median(f"{setting}_{name}", f"{what}: {label}", samples[name], "requests/s")
        for variant, budget in (("traced", KEPT), ("otel", None)):
            result.median(
                f"{setting}_{variant}_kept",
                f"{what}: kept by {NAMES[variant]}",
                ratios(samples, f"{variant}_rate", "plain_rate"),
                "ratio",
                budget=budget,
                at_least=True,
            )
        kept = ratios(samples, f"{NOTHING}_rate", "plain_rate")
        label = f"{what}: kept by a middleware that does nothing"
        result.median(f"{setting}_nothing_kept", label, kept, "ratio")
        label = f"{what}: CPU time of the server per request, plain"
        result.median(f"{setting}_plain_cpu", label, samples["plain_cpu_us"], "us")
        for variant in ("traced", "otel"):
            label = f"{what}: the same, {NAMES[variant]}"
            pair = (f"{variant}_cpu_us", "plain_cpu_us")
            result.added(f"{setting}_{variant}_cpu", label, samples, pair, "us added")
        # What wrk would see of a server that has its CPU to itself.
        label = f"{what}: kept by kerneltrace, by CPU time"
        kept = ratios(samples, "plain_cpu_us", "traced_cpu_us")
        result.median(f"{setting}_traced_kept_cpu", label, kept, "ratio")
    return result
