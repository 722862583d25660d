"""Facts beside the BPF feature probes: the extension, tracefs, lockdown, seccomp, limits."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from kerneltrace_core.kernel import btf
from kerneltrace_core.kernel.capabilities import NEEDED
from kerneltrace_core.kernel.limits import format_bytes, read_memlock
from kerneltrace_core.kernel.privileges import Privileges
from kerneltrace_core.kernel.support import Support

__all__ = [
    "capabilities_fact",
    "extension_fact",
    "lockdown_fact",
    "memlock_fact",
    "objects_fact",
    "preemption_fact",
    "procfs_fact",
    "seccomp_fact",
    "tracefs_fact",
]

TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
NATIVE = "kerneltrace_core._native"
OBJECTS = Path(__file__).parents[1] / "_objects"
REINSTALL = "pip install --force-reinstall --no-cache-dir kerneltrace (a build names what it lacks)"


def extension_fact(name: str) -> Support:
    """Import one of the compiled extensions."""
    try:
        importlib.import_module(f"{NATIVE}.{name}")
    except ModuleNotFoundError as error:
        if error.name == "_cffi_backend":
            return Support.no("cffi is not installed", "pip install cffi")
        return Support.no("not built for this Python", REINSTALL)
    except Exception as error:  # noqa: BLE001 - a broken binary may raise anything at its import
        return Support.no(f"{type(error).__name__}: {error}", REINSTALL)
    return Support.yes()


def objects_fact(directory: Path = OBJECTS) -> Support:
    """Say whether the compiled request probes were shipped; whether they load is not asked."""
    path = directory / "requests.bpf.o"
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        return Support.no("requests.bpf.o is not installed", REINSTALL)
    except OSError as error:
        return Support.no(f"{path}: {error.strerror}", "make it readable", error.errno)
    if magic != b"\x7fELF":
        return Support.no("requests.bpf.o is not an object file", REINSTALL)
    return Support.yes()


def capabilities_fact(privileges: Privileges) -> Support:
    """Say whether CAP_BPF and CAP_PERFMON are effective, and would count."""
    held = privileges.capabilities
    if held is None:
        return Support.unknown("/proc/thread-self/status could not be read")
    missing = held.missing(NEEDED)
    if missing:
        names = ", ".join(name.upper() for name in missing)
        return Support.no(f"{names} missing", f"give it {names}")
    if privileges.initial_user_namespace is False:
        return Support.no(
            "held in a user namespace only, where they do not count",
            "run outside of it: a rootful container, no userns-remap, no hostUsers: false",
        )
    admin = "cap_sys_admin" in held.effective
    return Support.yes("CAP_SYS_ADMIN" if admin else "CAP_BPF, CAP_PERFMON")


def tracefs_fact(paths: tuple[str, ...] = TRACEFS) -> Support:
    """Say whether classic tracepoints can be looked up; the request probes need no tracefs."""
    closed = None
    for path in paths:
        try:
            any(Path(f"{path}/events").iterdir())
        except PermissionError:
            closed = closed or path
        except OSError:
            continue
        else:
            return Support.yes(path)
    if closed:
        return Support.no(
            f"{closed} is not readable; only classic tracepoints need it",
            f"mount -o remount,gid=GROUP,mode=0750 {closed}",
        )
    return Support.no(
        "not mounted; only classic tracepoints need it",
        f"mount -t tracefs tracefs {paths[0]}",
    )


def lockdown_fact(privileges: Privileges) -> Support:
    """Say what kernel lockdown leaves."""
    lockdown = privileges.lockdown
    if lockdown.mode is None:
        return Support.unknown("securityfs is not mounted, and nothing else tells")
    if lockdown.mode == "confidentiality":
        return Support.no(
            "confidentiality: programs may not read kernel memory",
            "boot with lockdown=integrity or lockdown=none",
        )
    if lockdown.mode == "integrity":
        return Support.yes("integrity: fentry and LSM programs may be refused; not used here")
    return Support.yes("none")


def seccomp_fact(privileges: Privileges) -> Support:
    """Say whether a seccomp filter is on; whether it lets bpf() through is asked elsewhere."""
    seccomp = privileges.seccomp
    if seccomp.mode is None:
        return Support.unknown("the kernel does not tell")
    count = f", {seccomp.filters} of them" if seccomp.filters else ""
    privs = "; no_new_privs is set" if seccomp.no_new_privs else ""
    return Support.yes(f"{seccomp.mode}{count}{privs}")


def memlock_fact() -> Support:
    """Tell RLIMIT_MEMLOCK, which counts on kernels before 5.11."""
    limit = read_memlock()
    if limit is None:
        return Support.unknown("no resource limits here")
    return Support.yes(f"{format_bytes(limit.soft)}, hard {format_bytes(limit.hard)}")


def preemption_fact(btf_path: str) -> Support:
    """Say whether programs at tracepoints can lose their CPU."""
    if btf.preempts_programs(btf_path):
        return Support.yes("programs can lose their CPU here: they are loaded twice")
    return Support.yes("programs keep their CPU")


def procfs_fact(directory: str = "/proc/thread-self") -> Support:
    """Say whether the fallback's files can be read."""
    unreadable = [
        name for name in ("schedstat", "io") if not os.access(f"{directory}/{name}", os.R_OK)
    ]
    if unreadable:
        return Support.no(
            f"not readable: {', '.join(f'{directory}/{name}' for name in unreadable)}",
            "kernel options CONFIG_SCHED_INFO and CONFIG_TASK_IO_ACCOUNTING",
        )
    return Support.yes()
