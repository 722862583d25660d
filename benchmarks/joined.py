"""What a system call costs with 1 to 32 traced processes: one side, or a copy for each."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import handed, pinned
from benchmarks.loops import compiled
from benchmarks.machine import Solitude
from benchmarks.pinned import AT_ONCE
from benchmarks.rounds import Result, Samples, Size, Unavailable
from benchmarks.tracing import ALL_GROUPS, tracing

from kerneltrace_core.requests import KernelStats, RequestTracer, TracerOptions, engine

TIMES = 40_000
REPEATS = 3
COUNTS = (1, 2, 4, 8, 16, 32)
# Of one joined process, for 32.
RATIO = 1.10
JOIN_MS = 1.0
PINS_MS = 50.0
PINS_ROUNDS = 10
START_SECONDS = 60


class Children:
    """Processes that trace, and do nothing else, until they are ended."""

    def __init__(self) -> None:
        self._pids: list[int] = []
        self.join_ms: list[float] = []

    def add(self, start: Callable[[], None], prepare: Callable[[], None] | None = None) -> None:
        """Fork one, and wait until it has started to trace."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                if prepare is not None:
                    prepare()
                begin = time.perf_counter()
                start()
                os.write(writer, struct.pack("d", time.perf_counter() - begin))
                signal.pause()
            finally:
                os._exit(1)
        self._pids.append(pid)
        os.close(writer)
        with open(reader, "rb") as told:
            answer = told.read(8)
        if len(answer) != 8:
            raise Unavailable("a process that was to be traced has failed")
        self.join_ms.append(struct.unpack("d", answer)[0] * 1e3)

    def end(self) -> None:
        """End them all."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            os.waitpid(pid, 0)
        self._pids.clear()


@contextmanager
def _joined(size: Size, samples: Samples) -> Iterator[Callable[[int], None]]:
    """Load once; yield a function that brings the number of processes, this one too, to so many."""
    children = Children()
    if size.backend == "bpf":
        from kerneltrace_core.requests.preload import forget, preload

        if not preload(COUNTS[-1] + 1, probes=ALL_GROUPS):
            raise Unavailable("programs cannot be loaded here (see make doctor)")

        def prepare() -> None:
            """Join with no capability at all, as a server's workers do."""
            from kerneltrace_core._native.sharing import drop_capabilities

            drop_capabilities()

        def join() -> None:
            from kerneltrace_core.requests.sharing.inherited import inheritance

            prepared = inheritance()
            assert prepared is not None
            prepared.join()
    else:

        def prepare() -> None:
            """There is nothing to do."""

        def join() -> None:
            """Nothing is shared."""

        def forget() -> None:
            """Nothing was loaded."""

    def reach(count: int) -> None:
        while len(children.join_ms) < count - 1:
            children.add(join, prepare)

    try:
        with tracing(size.backend, probes=ALL_GROUPS):
            yield reach
    finally:
        children.end()
        forget()
        samples.setdefault("join", []).extend(children.join_ms)


@contextmanager
def _private(size: Size) -> Iterator[Callable[[int], None]]:
    """Yield the same, with a copy of the programs for each process."""
    children = Children()

    def start() -> None:
        options = TracerOptions(backend=size.backend, probes=ALL_GROUPS, share="own", required=True)
        RequestTracer.shared(options).start()

    def reach(count: int) -> None:
        while len(children.join_ms) < count - 1:
            children.add(start)

    try:
        with tracing(size.backend, probes=ALL_GROUPS, share="own"):
            yield reach
    finally:
        children.end()


def run(size: Size) -> Result:
    """Measure getppid in a tight loop while so many processes are traced."""
    samples: Samples = {}
    joins: Samples = {}
    result = Result(samples={"ns": samples, "join_ms": joins})
    solitude = Solitude(size.patience)
    times = size.times(TIMES)
    disturbed = 0
    with compiled() as (own, bystander):

        def take(call: Any, name: str) -> None:
            took = min(call("syscall_ns", times) for _ in range(REPEATS))
            samples.setdefault(name, []).append(took)

        def take_all(reach: Callable[[int], None], way: str) -> None:
            for count in COUNTS:
                reach(count)
                take(bystander, f"bystander_{way}_{count}")
                tracer = RequestTracer._shared
                assert tracer is not None
                stats: KernelStats = tracer.open()
                previous = engine.push(stats.record)
                try:
                    take(own, f"registered_{way}_{count}")
                finally:
                    engine.pop(previous)
                    tracer.finish(stats)

        for _ in range(size.limit(6)):
            disturbed += not solitude.wait()
            take(own, "base")
            with _joined(size, joins) as reach:
                take_all(reach, "joined")
            with _private(size) as reach:
                take_all(reach, "private")
    if disturbed:
        result.notes.append(f"another process was tracing in {disturbed} rounds")
    _tell(result, samples, joins)
    if size.backend == "bpf":
        _tell_pins(result, pinned.measure_joins(size.limit(PINS_ROUNDS)))
        _tell_handed(result, handed.measure_joins(size.limit(COUNTS[-1])))
    return result


def _tell(result: Result, samples: Samples, joins: Samples) -> None:
    result.median("base", "untraced", samples["base"], "ns")
    for who, subject in (("bystander", "another process"), ("registered", "a traced thread")):
        for way, what in (("joined", "one side"), ("private", "a copy each")):
            one = sorted(samples[f"{who}_{way}_1"])[len(samples[f"{who}_{way}_1"]) // 2]
            for count in COUNTS:
                name = f"{who}_{way}_{count}"
                budget = one * RATIO if (way, count) == ("joined", COUNTS[-1]) else None
                label = f"{count} processes, {what}: {subject}"
                result.median(name, label, samples[name], "ns", budget=budget)
    if joins.get("join"):
        label = "join from the inherited pool, with no capability"
        result.median("join", label, joins["join"], "ms", budget=JOIN_MS)


def _tell_pins(result: Result, samples: Samples | None) -> None:
    if samples is None:
        result.notes.append("joins by pins were not measured: no bpffs to write to")
        return
    result.samples["pins_ms"] = samples
    for name, label, budget in (
        ("alone", "join by pins, one of the first", PINS_MS),
        ("later", "join by pins, later: its region waits for RCU", PINS_MS),
        ("at_once", f"join by pins, the last of {AT_ONCE} at once", PINS_MS),
        ("load", "load and pin", None),
        ("behind_load", f"the last of {AT_ONCE} at once, one of which loads and pins", PINS_MS),
    ):
        result.median(f"pins_{name}", label, samples[name], "ms", budget=budget)


def _tell_handed(result: Result, samples: list[float] | None) -> None:
    if samples is None:
        result.notes.append("joins over the socket were not measured: kerneltrace run fails here")
        return
    result.samples["handed_ms"] = {"join": samples}
    label = "join from the pool of `kerneltrace run`, with no capability"
    result.median("join_handed", label, samples, "ms", budget=JOIN_MS)
