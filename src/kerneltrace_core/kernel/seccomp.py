"""Seccomp filters and no_new_privs of this process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Seccomp", "parse_seccomp", "read_seccomp"]

MODES = {0: "none", 1: "strict", 2: "filter"}


@dataclass(frozen=True)
class Seccomp:
    """``mode``: none, strict, filter or None (could not tell); ``filters``: how many, if told.

    ``no_new_privs``: file capabilities (setcap) and setuid bits have no effect. Immutable.
    """

    mode: str | None = None
    filters: int | None = None
    no_new_privs: bool | None = None


def parse_seccomp(lines: Iterable[str]) -> Seccomp:
    """Parse the lines of ``/proc/<pid>/status``; what has no line (old kernels) is None."""
    numbers: dict[str, int] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon and key in ("Seccomp", "Seccomp_filters", "NoNewPrivs"):
            try:
                numbers[key] = int(value)
            except ValueError:
                continue
    no_new_privs = numbers.get("NoNewPrivs")
    return Seccomp(
        mode=MODES.get(numbers.get("Seccomp", -1)),
        filters=numbers.get("Seccomp_filters"),
        no_new_privs=None if no_new_privs is None else no_new_privs != 0,
    )


def read_seccomp(path: str = "/proc/thread-self/status") -> Seccomp:
    """Read the calling thread's seccomp state; never raises."""
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            return parse_seccomp(lines)
    except OSError:
        return Seccomp()
