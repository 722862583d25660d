"""Compile C in tests: to BPF objects as the build does, and to programs of this machine."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

HEADERS = Path(__file__).parents[2] / "probes" / "include"
# The BPF side's name for the machine, which chooses the registers.
TARGETS = {"x86_64": "x86", "aarch64": "arm64"}


def tool(name: str) -> str:
    """Find a program, by its plain name or with a version at the end (clang-14)."""
    for candidate in (name, *(f"{name}-{version}" for version in range(22, 11, -1))):
        if path := shutil.which(candidate):
            return path
    raise FileNotFoundError(f"{name} is not installed (make deps)")


@functools.cache
def compile_bpf(source: str, *options: str) -> bytes:
    """Return the object that clang makes of BPF C; once for each source in a process.

    Stripped of DWARF as the shipped objects are, unless ``options`` have "-keep-dwarf".
    """
    machine = platform.machine()
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{machine}-linux-gnu"
    more = [option for option in options if option != "-keep-dwarf"]
    with tempfile.TemporaryDirectory(prefix="kt-") as folder:
        written, compiled = Path(folder, "test.bpf.c"), Path(folder, "test.bpf.o")
        written.write_text(source)
        command = [tool("clang"), "-g", "-O2", "-Wall", "-Werror", "-Wno-unused-parameter"]
        command += [
            "-target",
            "bpf",
            "-mcpu=v3",
            f"-D__TARGET_ARCH_{TARGETS.get(machine, machine)}",
        ]
        command += ["-I", str(HEADERS)]
        command += ["-idirafter", f"/usr/include/{multiarch}", "-idirafter", "/usr/include", *more]
        run([*command, "-c", str(written), "-o", str(compiled)])
        if "-keep-dwarf" not in options:
            run([tool("llvm-strip"), "-g", str(compiled)])
        return compiled.read_bytes()


@functools.cache
def run_host_c(source: str) -> bytes:
    """Compile C for this machine, run it, return what it wrote."""
    with tempfile.TemporaryDirectory(prefix="kt-") as folder:
        written, compiled = Path(folder, "host.c"), Path(folder, "host")
        written.write_text(source)
        run([tool("cc"), "-w", str(written), "-o", str(compiled)])
        return run([str(compiled)])


def run(command: list[str]) -> bytes:
    """Run a program; raise AssertionError with what it said if it fails."""
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}:\n{done.stderr.decode(errors='replace')}")
    return done.stdout
