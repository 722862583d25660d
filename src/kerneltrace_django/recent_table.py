"""The table of recent requests that ``manage.py kerneltrace recent`` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

__all__ = ["table"]

Document = Mapping[str, Any]

PATH_WIDTH = 44


def _milliseconds(key: str) -> Callable[[Document], str]:
    def show(document: Document) -> str:
        value = document.get(key)
        return "-" if value is None else f"{value:.1f}"

    return show


def _time(document: Document) -> str:
    moment = datetime.fromtimestamp(document["time"]).astimezone()
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"


def _path(document: Document) -> str:
    path = f"{document['method']} {document['path']}"
    return path if len(path) <= PATH_WIDTH else path[: PATH_WIDTH - 3] + "..."


def _blocked(document: Document) -> str:
    shown = _milliseconds("kernel_blocked_ms")(document)
    causes = document.get("kernel_blocked_by")
    return f"{shown} {max(causes, key=causes.get)[:-3]}" if causes else shown


def _number(key: str) -> Callable[[Document], str]:
    def show(document: Document) -> str:
        value = document.get(key)
        return "-" if value is None else str(value)

    return show


def _queries(document: Document) -> str:
    return str(sum(work["queries"] for work in document["db"].values()) or "-")


def _database_ms(document: Document) -> str:
    known = [work["blocked_ns"] for work in document["db"].values()]
    return f"{sum(known) / 1e6:.1f}" if known and None not in known else "-"


# Heading, whether numbers are aligned to the right, and how a cell is made.
COLUMNS: tuple[tuple[str, bool, Callable[[Document], str]], ...] = (
    ("time", False, _time),
    ("pid", True, _number("pid")),
    ("request", False, _path),
    ("status", True, _number("status_code")),
    ("ms", True, _milliseconds("kernel_wall_ms")),
    ("cpu", True, _milliseconds("kernel_cpu_ms")),
    ("queue", True, _milliseconds("kernel_run_queue_ms")),
    ("blocked", False, _blocked),
    ("loop wait", True, _milliseconds("kernel_loop_wait_ms")),
    ("calls", True, _number("kernel_syscalls")),
    ("queries", True, _queries),
    ("db", True, _database_ms),
)


def table(documents: Iterable[Document]) -> str:
    """Return the requests as lines of text under one of headings; times are milliseconds."""
    rows = [[heading for heading, _, _ in COLUMNS]]
    rows += [[show(document) for _, _, show in COLUMNS] for document in documents]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, COLUMNS, strict=True)
        shown = (
            f"{cell:>{width}}" if right else f"{cell:{width}}"
            for cell, width, (_, right, _) in cells
        )
        lines.append("  ".join(shown).rstrip())
    return "\n".join(lines) + "\n"
