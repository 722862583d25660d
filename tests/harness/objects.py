"""Compile the BPF programs of tests/probes, once for each content, here and for guest kernels."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.bpf_source import HEADERS, TARGETS, run, tool

ROOT = Path(__file__).parents[2]
PROBES = ROOT / "tests" / "probes"
# In the work tree: a guest kernel, where compiling takes 15 times as long, sees what is in it.
CACHE = ROOT / "build" / "objects"


def compile_object(name: str, *options: str) -> Path:
    """Compile tests/probes/NAME.bpf.c as the build compiles probes, if that was not done yet.

    ``options`` are clang's, after all others (``"-mcpu=v2"``). The file is named NAME.bpf.o and
    is stripped of DWARF; it is shared, so not to be changed. Several processes may call at once.
    Raises AssertionError with clang's words.
    """
    source = PROBES / f"{name}.bpf.c"
    key = hashlib.sha256(b"\0".join(_contents(source, options))).hexdigest()[:16]
    compiled = CACHE / key / f"{name}.bpf.o"
    if compiled.exists():
        return compiled
    compiled.parent.mkdir(parents=True, exist_ok=True)
    with open(compiled.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not compiled.exists():
            with tempfile.TemporaryDirectory(dir=compiled.parent) as folder:
                unfinished = Path(folder, compiled.name)
                run([*_command(), *options, "-c", str(source), "-o", str(unfinished)])
                run([tool("llvm-strip"), "-g", str(unfinished)])
                unfinished.replace(compiled)
    return compiled


def object_names() -> tuple[str, ...]:
    """Return the names of all programs in tests/probes, sorted."""
    return tuple(sorted(path.name.removesuffix(".bpf.c") for path in PROBES.glob("*.bpf.c")))


def _contents(source: Path, options: tuple[str, ...]) -> Iterator[bytes]:
    """Yield what decides about the object: the command, the source, every header of ours."""
    yield "\0".join([*_command(), *options]).encode()
    yield source.read_bytes()
    for header in sorted([*PROBES.rglob("*.h"), *HEADERS.rglob("*.h")]):
        yield str(header.relative_to(ROOT)).encode()
        yield header.read_bytes()


@functools.cache
def _command() -> tuple[str, ...]:
    """Return clang with the options of setup.py."""
    machine = platform.machine()
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{machine}-linux-gnu"
    return (
        *(tool("clang"), "-g", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
        *("-target", "bpf", "-mcpu=v3", f"-D__TARGET_ARCH_{TARGETS.get(machine, machine)}"),
        *("-I", str(HEADERS), "-I", str(PROBES)),
        *("-idirafter", f"/usr/include/{multiarch}", "-idirafter", "/usr/include"),
    )


def main() -> None:
    """Compile all of them: `python -m harness.objects`, before a guest kernel is started."""
    for name in object_names():
        sys.stdout.write(f"{compile_object(name)}\n")


if __name__ == "__main__":
    main()
