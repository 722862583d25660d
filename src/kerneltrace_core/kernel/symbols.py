"""Names of the kernel's functions, and which of them were probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["function_names", "nearest", "parse_kallsyms"]


def parse_kallsyms(lines: Iterable[str]) -> list[str]:
    """Return the functions among the lines of ``/proc/kallsyms``, without those of modules' data.

    Addresses, which only the privileged see, are passed over.
    """
    names = []
    for line in lines:
        words = line.split()
        if len(words) >= 3 and words[1] in "tTwW":
            names.append(words[2])
    return names


def function_names(path: str = "/proc/kallsyms") -> list[str]:
    """Read the names of the running kernel's functions; none if they cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            return parse_kallsyms(lines)
    except OSError:
        return []


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the names that were probably meant, the likeliest first.

    Compilers rename what they change (``name.isra.0``, ``name.constprop.0``): these come first.
    """
    changed: list[str] = []
    similar: list[str] = []
    for other in known:
        if other.startswith(f"{name}."):
            changed.append(other)
        # Comparing takes microseconds, and a kernel has a hundred thousand names.
        elif abs(len(other) - len(name)) <= 4 and other[:2] == name[:2]:
            similar.append(other)
    found = [*dict.fromkeys(changed), *difflib.get_close_matches(name, set(similar), count, 0.75)]
    return found[:count]
