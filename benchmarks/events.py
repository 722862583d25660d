"""What an event costs from a full ring to Python, against BCC; and how soon it is there."""

from __future__ import annotations

import asyncio
import os
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.rounds import Result, Size, Unavailable, interleave

from kerneltrace_core import KernelTraceError, Session
from kerneltrace_core._native import lib

HERE = Path(__file__).parent
ROOT = HERE.parent
DEBIANS_PYTHON = "/usr/bin/python3"
ROUNDS = 12
REPEATS = 4  # what disturbs a round only makes it longer
FILLS = 24  # of 2048 events: most of the ring
MOMENTS = 1000
PAUSE_SECONDS = 0.002
SPIN_US = 200
IDLE_SECONDS, SETTLE_SECONDS = 2.0, 0.2
GETPPID = {"x86_64": 110, "aarch64": 173}

Drain = Callable[[], tuple[int, float]]


def compile_probe(folder: Path) -> Path:
    """Compile events.bpf.c. Raises Unavailable without clang."""
    target = folder / "events.bpf.o"
    headers = ROOT / "probes" / "include"
    machine = os.uname().machine
    command = ["clang", "-g", "-O2", "-target", "bpf", "-mcpu=v3", "-I", str(headers)]
    command += [f"-D__TARGET_ARCH_{'x86' if machine == 'x86_64' else 'arm64'}"]
    command += ["-idirafter", f"/usr/include/{machine}-linux-gnu", "-idirafter", "/usr/include"]
    command += ["-c", str(HERE / "events.bpf.c"), "-o", str(target)]
    try:
        subprocess.run(command, check=True)
    except OSError as error:
        raise Unavailable(f"needs clang ({error})") from error
    return target


class Bench:
    """A session with a ring to fill, and the ways to empty it."""

    def __init__(self, session: Session, fills: int) -> None:
        self.session = session
        self.fills = fills
        parts: Any = session._parts
        self._program = parts.object.program_fd("fill")
        self.ring_fd: int = parts.object.map_fd("events")

    def fill(self) -> int:
        """Write records until as many are there as asked for; return how many."""
        sent = 0
        for _ in range(self.fills):
            context = bytearray(8)
            lib.run_program(self._program, context, "fill the ring")
            sent += int.from_bytes(context, "little")
        return sent

    def measure(self, stream: Any, drain: Callable[[Any], int]) -> float:
        """Return the CPU time of one record, in ns: the least of some full rings."""
        with stream:
            return min(self._measure(stream, drain) for _ in range(REPEATS))

    def _measure(self, stream: Any, drain: Callable[[Any], int]) -> float:
        sent = self.fill()
        begin = time.thread_time_ns()
        seen = drain(stream)
        took = time.thread_time_ns() - begin
        assert seen == sent, f"{seen} of {sent} records"
        return took / sent

    def events(self) -> Any:
        """Return a stream of event objects that ends with the ring."""
        return self.session.events("record", ring="events", timeout=0)

    def batches(self) -> Any:
        """Return a stream of batches that ends with the ring."""
        return self.session.batches("record", ring="events", timeout=0)


def typed(events: Any) -> int:
    """Iterate over events."""
    seen = 0
    for _ in events:
        seen += 1
    return seen


def typed_read(events: Any) -> int:
    """Iterate over events, and look at one field of each."""
    seen = total = 0
    for event in events:
        seen += 1
        total += event.number
    return seen


def typed_async(events: Any) -> int:
    """Iterate over events on an event loop."""

    async def drain() -> int:
        seen = 0
        async for _ in events:
            seen += 1
        return seen

    return asyncio.run(drain())


def batched(batches: Any) -> int:
    """Take batches."""
    seen = 0
    for columns in batches:
        seen += len(columns)
    return seen


def batched_read(batches: Any) -> int:
    """Take batches, and one column of each."""
    seen = 0
    for columns in batches:
        seen += len(columns["number"])
    return seen


@contextmanager
def bcc(bench: Bench) -> Iterator[Drain]:
    """Yield what drains the same ring through BCC. Raises Unavailable without it."""
    command = [DEBIANS_PYTHON, str(HERE / "bcc_reader.py"), str(bench.ring_fd)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[bench.ring_fd],
        env=environment,
    ) as reader:
        asked: Any = reader.stdin
        answers: Any = reader.stdout
        complaints: Any = reader.stderr

        def drain() -> tuple[int, float]:
            asked.write("\n")
            asked.flush()
            answer = answers.readline().split()
            if not answer:
                raise Unavailable(f"BCC: {complaints.read().strip().splitlines()[-1]}")
            return int(answer[0]), float(answer[1])

        try:
            drain()
            yield drain
        finally:
            asked.close()
            reader.wait(10)


def costs(session: Session, size: Size, result: Result) -> None:
    """Measure what a record costs, in interleaved rounds."""
    bench = Bench(session, size.times(FILLS))
    ways: dict[str, Callable[[], float]] = {
        "typed": lambda: bench.measure(bench.events(), typed),
        "typed_read": lambda: bench.measure(bench.events(), typed_read),
        "typed_async": lambda: bench.measure(bench.events(), typed_async),
        "batched": lambda: bench.measure(bench.batches(), batched),
        "batched_read": lambda: bench.measure(bench.batches(), batched_read),
    }
    try:
        with bcc(bench) as drain:

            def their_round() -> float:
                sent = bench.fill()
                seen, took = drain()
                assert seen == sent
                return took

            def theirs() -> float:
                return min(their_round() for _ in range(REPEATS))

            samples = interleave({**ways, "bcc": theirs}, size.limit(ROUNDS))
    except Unavailable as missing:
        result.notes.append(f"not beside BCC: {missing} (Debian: apt install python3-bpfcc)")
        samples = interleave(ways, size.limit(ROUNDS))
    result.samples["ns"] = samples
    for name, label, budget in (
        ("typed", "an event object, `for`", 100),
        ("typed_read", "the same, and one field read", None),
        ("typed_async", "an event object, `async for`", 150),
        ("batched", "an event of a batch", 8),
        ("batched_read", "the same, and one column read (without numpy)", None),
        ("bcc", "BCC: the usual callback with a ctypes struct", None),
    ):
        if name in samples:
            result.median(f"cost_{name}", label, samples[name], "ns", budget=budget)
    if "bcc" in samples:
        for name, label, budget in (
            ("typed", "BCC's time over ours, `for`", 7),
            ("batched", "BCC's time over ours, batches", 80),
        ):
            times = [a / b for a, b in zip(samples["bcc"], samples[name], strict=True)]
            result.median(f"cost_{name}_times", label, times, "times", budget=budget, at_least=True)
    for name, label, floor in (
        ("typed", "events per second and core, `for`", 5.0),
        ("batched", "events per second and core, batches", 50.0),
    ):
        rates = [1e3 / each for each in samples[name]]
        result.median(f"cost_{name}_rate", label, rates, "million/s", budget=floor, at_least=True)


@contextmanager
def apart(other: subprocess.Popen[bytes]) -> Iterator[None]:
    """Keep another process off this thread's CPU, where there are two.

    Else it is chance, and different for a pipe and a ring, whether who sleeps is woken on the CPU
    of who wakes it or on one that has to be woken too.
    """
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(other.pid, {max(cpus)})
    os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


CALLER = """
import os, sys, time
sys.stdin.readline()
for _ in range(int(sys.argv[1])):
    time.sleep(float(sys.argv[2]))
    os.getppid()
"""


def delays(probe: Path, size: Size, spin_us: float) -> list[float]:
    """Return the microseconds from a record's time to the first line that has it, each.

    Who makes the event is on another CPU.
    """
    count = size.times(MOMENTS)
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, str(count), str(PAUSE_SECONDS)], stdin=subprocess.PIPE
    ) as caller:
        call = GETPPID.get(os.uname().machine)
        if call is None:
            caller.kill()
            raise Unavailable(f"does not know the system calls of {os.uname().machine}")
        names = {"process": caller.pid, "call": call}
        with apart(caller), Session(probe, "auto", variables=names, spin_us=spin_us) as session:
            found: list[float] = []
            with session.events("record", ring="moments", timeout=5) as events:
                assert caller.stdin is not None
                caller.stdin.write(b"\n")
                caller.stdin.flush()
                for event in events:
                    found.append((time.monotonic_ns() - event.header.time_ns) / 1000)
                    if len(found) == count:
                        break
        caller.stdin.close()
        caller.wait(10)
    return found


WRITER = """
import os, struct, sys, time
pipe = int(sys.argv[1])
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    time.sleep(float(sys.argv[3]))
    os.write(pipe, struct.pack("=q", time.monotonic_ns()))
"""


def bare_delays(size: Size) -> list[float]:
    """Return the microseconds from a write to a pipe to the first line of who slept on it.

    The same as ``delays``, with nothing of ours: what this machine takes to wake a process.
    """
    count = size.times(MOMENTS)
    found: list[float] = []
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as pipe, select.epoll() as epoll:
        epoll.register(pipe, select.EPOLLIN)
        with open(writing, "wb", buffering=0):
            writer = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(writing), str(count), str(PAUSE_SECONDS)],
                stdin=subprocess.PIPE,
                pass_fds=(writing,),
            )
        with writer, apart(writer):
            assert writer.stdin is not None
            writer.stdin.write(b"\n")
            writer.stdin.flush()
            while epoll.poll(5) and (told := pipe.read(8)):
                written_ns = int.from_bytes(told, sys.byteorder)
                found.append((time.monotonic_ns() - written_ns) / 1000)
    return found


def latency(probe: Path, size: Size, result: Result) -> None:
    """Measure how soon a sleeping and a spinning reader has an event, and the floor under it."""
    bare = bare_delays(size)
    cuts = statistics.quantiles(bare, n=100)
    result.samples["bare"] = {"us": bare}
    machine = "the machine alone, a sleeper on a pipe, no BPF"
    result.median("latency_bare_p50", f"{machine}: half of the wake-ups", [cuts[49]], "us")
    result.median("latency_bare_p99", f"{machine}: 99% of the wake-ups", [cuts[98]], "us")
    for name, spin_us, label in (
        ("sleep", 0, "reader asleep"),
        ("spin", 1e6 * PAUSE_SECONDS * 2, "reader polls (`spin_us`)"),
    ):
        found = delays(probe, size, spin_us)
        cuts = statistics.quantiles(found, n=100)
        result.samples[name] = {"us": found}
        result.median(
            f"latency_{name}_p50", f"{label}: half of the events", [cuts[49]], "us", budget=10
        )
        result.median(
            f"latency_{name}_p99", f"{label}: 99% of the events", [cuts[98]], "us", budget=50
        )


def wake_ups() -> int:
    """Return how often the threads of this process but the first have slept and woken."""
    count = 0
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) != os.getpid():
            status = (task / "status").read_text()
            count += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return count


def idle(probe: Path, size: Size, result: Result) -> None:
    """Count the wake-ups of a session that waits for events, and none come."""
    seconds = IDLE_SECONDS * size.scale
    for pump, label in (("inline", "a reader that waits"), ("thread", "a reader and the pump")):
        # No process has this number: the program says no to every system call.
        with Session(probe, "auto", variables={"process": 1 << 31}, pump=pump) as session:
            stream = session.events("record", ring="moments")
            reader = threading.Thread(target=list, args=(stream,))
            reader.start()
            time.sleep(SETTLE_SECONDS)
            before = wake_ups()
            time.sleep(seconds)
            woken = wake_ups() - before
            stream.close()
            reader.join()
        result.median(
            f"latency_idle_{pump}",
            f"no events for {IDLE_SECONDS:g} s, {label}: wake-ups",
            [float(woken)],
            "times",
            budget=0,
        )


def run(size: Size) -> Result:
    """Measure both. Raises Unavailable where sessions cannot be opened."""
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        probe = compile_probe(Path(folder))
        try:
            with Session(probe, programs=["fill"]) as session:
                costs(session, size, result)
            latency(probe, size, result)
            idle(probe, size, result)
        except KernelTraceError as error:
            raise Unavailable(str(error)) from error
    return result
