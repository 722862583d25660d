"""The C loops, in this process or in one that nobody traces."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import fresh
from benchmarks.rounds import Unavailable

SOURCE = Path(__file__).with_name("kernel_cost.c")


class Loops:
    """Loops by name; each returns ns for one turn of ``times``. Releases the GIL meanwhile."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)

    def __call__(self, name: str, times: int) -> float:
        loop = getattr(self._library, name)
        loop.argtypes, loop.restype = [ctypes.c_long], ctypes.c_double
        took: float = loop(times)
        if took < 0:
            raise Unavailable(f"{name}: no pipe or thread to be had, or no CPU to stay on")
        return took


class Bystander:
    """Another process with the same loops, told what to do through its standard input."""

    def __init__(self, library: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.loops", library],
            env=fresh.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, name: str, times: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name} {times}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=fresh.TIMEOUT_SECONDS)


@contextmanager
def compiled() -> Iterator[tuple[Loops, Bystander]]:
    """Compile the loops, and start the bystander. Raises Unavailable without a C compiler."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    path = shutil.which(compiler) or shutil.which("cc")
    if path is None or not hasattr(os, "sched_getaffinity"):
        raise Unavailable("needs Linux and a C compiler")
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / "loops.so")
        command = [path, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread"]
        subprocess.run([*command, "-o", library, str(SOURCE)], check=True)
        bystander = Bystander(library)
        try:
            yield Loops(library), bystander
        finally:
            bystander.close()


def serve(library: str) -> None:
    loops = Loops(library)
    for line in sys.stdin:
        name, times = line.split()
        print(loops(name, int(times)), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
