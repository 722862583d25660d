"""Bars and colours: every kind of time has a sign, and a colour where the terminal shows it."""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

WIDTH = 96


class Kind(NamedTuple):
    """One kind of time: its field in KernelStats (less the unit), its name, sign and colour."""

    field: str
    name: str
    sign: str
    colour: int


LEDGER = (
    Kind("cpu_ns", "cpu", "█", 32),
    Kind("run_queue_ns", "run queue", "▓", 33),
    Kind("blocked_ns", "blocked", "▒", 31),
    Kind("loop_wait_ns", "loop wait", "!", 35),
    Kind("suspended_ns", "suspended", "·", 36),
)
COLOURED = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(text: str, *codes: int) -> str:
    """Return text in a colour, if there are colours."""
    if not COLOURED or not codes:
        return text
    return f"\x1b[{';'.join(map(str, codes))}m{text}\x1b[0m"


def bold(text: str) -> str:
    """Return text in bold, if there is bold."""
    return paint(text, 1)


def bar(parts: list[tuple[Kind, float]], width: int) -> str:
    """Return a bar of ``width`` signs that shows the parts' shares, larger remainders first."""
    whole = sum(part for _, part in parts)
    if whole <= 0:
        return " " * width
    shares = [part / whole * width for _, part in parts]
    cells = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: cells[i] - shares[i])
    for index in by_remainder[: width - sum(cells)]:
        cells[index] += 1
    return "".join(
        paint(kind.sign * count, kind.colour) for (kind, _), count in zip(parts, cells, strict=True)
    )


def legend() -> str:
    """Say what the signs mean."""
    return "  ".join(f"{paint(kind.sign * 2, kind.colour)} {kind.name}" for kind in LEDGER)


def ms(ns: float | None, digits: int = 1) -> str:
    """Return milliseconds, or a dash for what is not known."""
    return "-" if ns is None else f"{ns / 1e6:.{digits}f}"


def size(count: float | None) -> str:
    """Return a number of bytes, short."""
    if count is None:
        return "-"
    for unit in ("", "K", "M"):
        if count < 1000:
            return f"{count:.0f}{unit}" if unit == "" or count >= 10 else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.1f}G"


def causes(blocked_by: dict[str, Any] | None) -> list[tuple[str, float]]:
    """Return the causes that there were, largest first."""
    known = blocked_by or {}
    return sorted(((name, ns) for name, ns in known.items() if ns), key=lambda each: -each[1])
