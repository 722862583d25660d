"""How long a process takes to join over the socket of ``kerneltrace run``, with no capability.

A program of its own, for ``kerneltrace run`` becomes it.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import fresh

__all__ = ["measure_joins"]

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 120


def measure_joins(count: int) -> list[float] | None:
    """Return milliseconds, one for each of so many processes; None where it cannot be run."""
    command = [sys.executable, "-m", "kerneltrace_core.cli", "run", "--required"]
    command += ["--processes", str(count), "--", sys.executable, "-m", "benchmarks.handed"]
    done = subprocess.run(
        [*command, str(count)],
        cwd=ROOT,
        env=fresh.environment(KERNELTRACE_PROBES="sched,syscalls,block,net"),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    if done.returncode != 0:
        return None
    samples: list[float] = json.loads(done.stdout)
    return samples


def _join() -> tuple[int, float]:
    """Fork one that joins; return a pipe that it holds until it is closed, and how long it took."""
    from kerneltrace_core.requests.sharing.handed import join_handed

    address = os.environ["KERNELTRACE_SOCKET"]
    told, keep = os.pipe()
    answer, writer = os.pipe()
    if os.fork() == 0:
        status = 1
        try:
            os.close(keep)
            begin = time.perf_counter()
            join_handed(address)
            os.write(writer, struct.pack("d", (time.perf_counter() - begin) * 1e3))
            os.close(writer)
            os.read(told, 1)
            status = 0
        finally:
            os._exit(status)
    os.close(told)
    os.close(writer)
    with open(answer, "rb") as reader:
        return keep, struct.unpack("d", reader.read())[0]


def main() -> None:
    """Print what was measured as JSON."""
    joined = [_join() for _ in range(int(sys.argv[1]))]
    print(json.dumps([took for _, took in joined]), flush=True)
    # A pipe that a later one has inherited is closed with that one.
    for keep, _ in reversed(joined):
        os.close(keep)
        os.wait()


if __name__ == "__main__":
    main()
