"""How long a process takes to join by pins: alone, with others at once, and when one has to load.

A program of its own, so that it can be run where a bpffs is mounted for it alone.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.rounds import Samples
from benchmarks.tracing import ALL_GROUPS

__all__ = ["measure_joins"]

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 3
SECONDS = 120
PRIVATE = ("unshare", "--mount", "--propagation", "private", "--")
MOUNT = 'mount -t bpf bpf /sys/fs/bpf && exec "$@"'


def measure_joins(rounds: int) -> Samples | None:
    """Return milliseconds by what was done; None where there is no bpffs, nor one to be had."""
    from kerneltrace_core.requests.sharing.pins import usable

    command = [sys.executable, "-m", "benchmarks.pinned", str(rounds)]
    if not usable():
        if shutil.which(PRIVATE[0]) is None:
            return None
        command = [*PRIVATE, "sh", "-c", MOUNT, "sh", *command]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    if done.returncode != 0:
        return None
    samples: Samples = json.loads(done.stdout)
    return samples


class _Process:
    """One that is ready to join, does so when it is told, and stays until its pipe is closed."""

    def __init__(self) -> None:
        told, self._tell = os.pipe()
        self._answer, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._tell)
                self._join(told, answer)
                status = 0
            finally:
                os._exit(status)
        os.close(told)
        os.close(answer)

    def _join(self, told: int, answer: int) -> None:
        from kerneltrace_core.requests.sharing.pins import join_pinned

        os.read(told, 1)
        begin = time.perf_counter()
        side = join_pinned(ALL_GROUPS, timed=True)
        os.write(answer, struct.pack("d", (time.perf_counter() - begin) * 1e3))
        os.read(told, 1)
        side.close()

    def begin(self) -> None:
        """Tell it to join."""
        os.write(self._tell, b"x")

    def took_ms(self) -> float:
        """Return how long it took. Raises struct.error if it failed."""
        return float(struct.unpack("d", os.read(self._answer, 8))[0])

    def end(self) -> None:
        """Have it leave."""
        os.close(self._tell)
        os.close(self._answer)
        os.waitpid(self._pid, 0)


def _together(count: int) -> tuple[list[_Process], list[float]]:
    processes: list[_Process] = []
    for _ in range(count):
        processes.append(_Process())
    for process in processes:
        process.begin()
    return processes, [process.took_ms() for process in processes]


def _end(processes: list[_Process]) -> None:
    # A pipe that a later one has inherited is closed with that one.
    while processes:
        processes.pop().end()


def main() -> None:
    """Print what was measured as JSON."""
    import kerneltrace_core.requests.sharing.pins  # noqa: F401 - not in what is measured

    samples: Samples = {name: [] for name in ("load", "alone", "later", "at_once", "behind_load")}
    for _ in range(int(sys.argv[1])):
        holders, took = _together(1)
        samples["load"] += took
        # The same index a second time: what came with the load is used up.
        for name, count in (("alone", 1), ("later", 1), ("at_once", AT_ONCE)):
            joined, took = _together(count)
            samples[name].append(max(took))
            _end(joined)
        _end(holders)
        joined, took = _together(AT_ONCE)
        samples["behind_load"].append(max(took))
        _end(joined)
    print(json.dumps(samples))


if __name__ == "__main__":
    main()
