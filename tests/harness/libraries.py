"""Compile the C of tests/probes that is to be traced: shared libraries for this machine."""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from pathlib import Path

from harness.bpf_source import run, tool
from harness.objects import CACHE, PROBES

FLAGS = ("-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def compile_library(name: str) -> Path:
    """Compile tests/probes/NAME.c to a shared library, if that was not done yet.

    Several processes may call at once. Raises AssertionError with the compiler's words.
    """
    source = PROBES / f"{name}.c"
    key = hashlib.sha256("\0".join(FLAGS).encode() + source.read_bytes()).hexdigest()[:16]
    compiled = CACHE / key / f"lib{name}.so"
    if compiled.exists():
        return compiled
    compiled.parent.mkdir(parents=True, exist_ok=True)
    with open(compiled.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not compiled.exists():
            with tempfile.TemporaryDirectory(dir=compiled.parent) as folder:
                unfinished = Path(folder, compiled.name)
                run([tool("cc"), *FLAGS, str(source), "-o", str(unfinished)])
                unfinished.replace(compiled)
    return compiled
