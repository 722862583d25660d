"""The processors of this machine, by the kernel's numbers."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["online_processors", "parse_processors"]

ONLINE = "/sys/devices/system/cpu/online"


def parse_processors(text: str) -> list[int]:
    """Return the numbers in ``0-3,6``. Raises ValueError. Pure."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def online_processors(path: str = ONLINE) -> list[int]:
    """Return the processors that are online; where none can be read, as many as Python counts."""
    try:
        return parse_processors(Path(path).read_text())
    except (OSError, ValueError):
        return list(range(os.cpu_count() or 1))
