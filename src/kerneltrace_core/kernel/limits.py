"""Resource limits that BPF objects count against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Limit", "format_bytes", "memlock_raised", "read_memlock", "read_nofile"]


@dataclass(frozen=True)
class Limit:
    """A soft and a hard limit; None is unlimited. Immutable."""

    soft: int | None
    hard: int | None


def _read(name: str) -> Limit | None:
    # Not at the top: Windows has no resource module, and this module is imported there.
    try:
        import resource
    except ImportError:
        return None
    try:
        soft, hard = resource.getrlimit(getattr(resource, name))
    except (AttributeError, OSError, ValueError):
        return None
    infinite = resource.RLIM_INFINITY
    return Limit(None if soft == infinite else soft, None if hard == infinite else hard)


def read_memlock() -> Limit | None:
    """Read RLIMIT_MEMLOCK in bytes; None is could not tell.

    Kernels before 5.11 charge maps and programs to it; later ones to the memory cgroup.
    """
    return _read("RLIMIT_MEMLOCK")


def read_nofile() -> Limit | None:
    """Read RLIMIT_NOFILE, a number of descriptors; None is could not tell."""
    return _read("RLIMIT_NOFILE")


@contextmanager
def memlock_raised() -> Iterator[None]:
    """Raise RLIMIT_MEMLOCK as far as this process may, and put it back afterwards.

    A loader does the same, so what is probed inside is what a loader would meet. Limits
    belong to the process: not for use beside other threads that change them.
    """
    try:
        import resource
    except ImportError:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for wanted in (resource.RLIM_INFINITY, before[1]):
        hard = wanted if wanted == resource.RLIM_INFINITY else before[1]
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (wanted, hard))
            break
        except (OSError, ValueError):
            continue
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


def format_bytes(count: int | None) -> str:
    """Format a limit for people: ``64 KiB``, ``2.7 MiB``, ``unlimited``."""
    if count is None:
        return "unlimited"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if size == int(size) else f"{size:.1f} {unit}"
