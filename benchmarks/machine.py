"""What the figures were taken on, and whether somebody else is tracing it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "starlette",
    "django",
    "uvicorn",
    "gunicorn",
    "uvloop",
    "httptools",
    "opentelemetry-instrumentation-asgi",
    "opentelemetry-instrumentation-django",
)
OUR_PREFIX = "kt_"


def describe() -> dict[str, str | int]:
    """Return machine, kernel, interpreter and the packages that were measured with."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count() or 0,
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "virtual": "hypervisor" in _cpu_info("flags").split(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: _version(name) for name in PACKAGES},
    }


def _cpu_info(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _cpu_model() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def tracers() -> int | None:
    """Count the BPF programs of kerneltrace that are loaded now; None if it cannot be told."""
    bpftool = shutil.which("bpftool") or shutil.which("/usr/sbin/bpftool")
    if bpftool is None:
        return None
    run = subprocess.run([bpftool, "-j", "prog", "show"], capture_output=True, check=False)
    try:
        programs = json.loads(run.stdout)
        return sum(str(each.get("name", "")).startswith(OUR_PREFIX) for each in programs)
    except (ValueError, AttributeError):
        return None


class Solitude:
    """Waits until nobody on this machine traces, all in all for so many seconds.

    Another process's programs would make our base dearer. Ours go some milliseconds after they
    were detached, and the first system calls after that are slow; so there is a pause as well.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience

    def wait(self) -> bool:
        """Return when we are alone; False if that did not come to pass."""
        begin = time.monotonic()
        while tracers():
            waited = time.monotonic() - begin
            if waited > self._patience:
                self._patience = 0
                return False
            time.sleep(0.05)
        self._patience -= time.monotonic() - begin
        time.sleep(0.05)
        return True
