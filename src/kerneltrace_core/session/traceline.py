"""Lines of tracefs's trace_pipe, as bpf_printk writes them, parsed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

__all__ = ["TraceLine", "parse_line", "parse_lost"]

# print_trace_line() and trace_print_context() of kernel/trace: flags and the process number in
# brackets are options. What wrote it: the event of Linux 5.9, before it an address or nothing.
LINE = re.compile(
    r" *(?P<task>.+)-(?P<pid>\d+) +(?:\( *[\d-]+\) +)?\[(?P<cpu>\d+)\] +(?:[^ ]{4,6} +)?"
    r"(?P<time>\d+(?:\.\d+)?): (?P<writer>bpf_trace_printk|0x[0-9a-f]+|\d*): (?P<text>.*)"
)
LOST = re.compile(r"CPU:(?P<cpu>\d+) \[LOST (?P<count>\d+) EVENTS\]")


@dataclass(frozen=True)
class TraceLine:
    """A line that a program wrote. Immutable.

    ``task`` (15 characters at most; ``<...>`` if the kernel has forgotten) and ``pid`` (of the
    thread, in the initial pid namespace): who was running. ``time_ns``: of the trace clock, in
    steps of 1000 ns; that is none of Python's clocks unless trace_clock is set to ``mono``. None
    if it does not tell time.
    """

    task: str
    pid: int
    cpu: int
    time_ns: int | None
    text: str


def parse_line(line: str) -> TraceLine | None:
    """Return what a line says; None if no program wrote it."""
    found = LINE.fullmatch(line.rstrip("\n"))
    if found is None:
        return None
    time = found["time"]
    return TraceLine(
        found["task"],
        int(found["pid"]),
        int(found["cpu"]),
        int(Decimal(time) * 1_000_000_000) if "." in time else None,
        found["text"],
    )


def parse_lost(line: str) -> int:
    """Return how many entries the kernel says were overwritten before they could be read."""
    found = LOST.fullmatch(line.strip())
    return int(found["count"]) if found else 0
