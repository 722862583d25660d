"""The table by route: where the time of its requests went."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from tour.paint import LEDGER, bar, bold, causes, legend, ms, paint, size

Request = dict[str, Any]
BAR = 14
BYTES = ("read_bytes", "write_bytes", "net_rx_bytes", "net_tx_bytes")
THREAD = {"cpu_ns": "thread_cpu_ns", "run_queue_ns": "thread_run_queue_ns"}
NOTABLE_NS = 500_000


def mean(requests: list[Request], field: str) -> float | None:
    """Return a field's mean, None if any request does not know it."""
    values = [request[field] for request in requests]
    return None if None in values or not values else sum(values) / len(values)


def mean_causes(requests: list[Request], field: str) -> dict[str, float]:
    """Return the mean of each cause."""
    known = [request[field] for request in requests if request[field]]
    return (
        {name: sum(each[name] for each in known) / len(known) for name in known[0]} if known else {}
    )


def table(requests: list[Request], order: list[str]) -> Iterator[str]:
    """Yield the lines of the table: a row for each route, one more for its threads."""
    yield bold("Where the time went, by route") + "   ms on the event loop, mean per request"
    yield "  " + legend()
    yield ""
    yield (
        f"{'':15}{'':5}{'p50':>7}  {'':{BAR}}{'':6}{'run':>6}{'':12}{'loop':>6}{'sus-':>7}"
        f"{'system':>7}{'':6}{'':3}"
    ).rstrip()
    yield paint(
        f"{'route':15}{'reqs':>5}{'wall':>7}  {'':{BAR}}{'cpu':>6}{'queue':>6}{'blocked':>12}"
        f"{'wait':>6}{'pended':>7}{'calls':>7}{'bytes':>6}{'fsync':>6}",
        4,
    )
    for route in order:
        chosen = [request for request in requests if request["route"] == route]
        if chosen:
            yield from rows(route, chosen)


def rows(route: str, requests: list[Request]) -> Iterator[str]:
    """Yield the rows of one route."""
    walls = [request["wall_ns"] for request in requests]
    p50 = None if None in walls else median(walls)
    ledger = cells(requests, {}, "blocked_by")
    yield f"{route:15}{len(requests):5}{ms(p50):>7}  {ledger}{counts(requests)}".rstrip()
    threaded = mean(requests, "thread_ns")
    if threaded:
        names = {**THREAD, "blocked_ns": "thread_blocked_ns"}
        yield more(" in threads", threaded, cells(requests, names, "thread_blocked_by"))
    later = [request["background"] for request in requests if request["background"]]
    after = mean(later, "wall_ns")
    if after and after >= NOTABLE_NS:
        yield more(" after the end", after, cells(later, {}, "blocked_by") + counts(later))


def more(name: str, ns: float, rest: str) -> str:
    """Return a row that says more of the route above."""
    return f"{name:20}{ms(ns):>7}  {rest}".rstrip()


def counts(requests: list[Request]) -> str:
    """Return system calls, bytes moved and fsyncs."""
    calls, fsyncs = mean(requests, "syscalls"), mean(requests, "fsyncs")
    moved = [mean(requests, field) for field in BYTES]
    known = [count for count in moved if count is not None]
    return (
        f"{'-' if calls is None else f'{calls:.0f}':>7}"
        f"{size(sum(known) if known else None):>6}"
        f"{'-' if fsyncs is None else f'{fsyncs:.1f}' if fsyncs else '':>6}"
    )


def cells(requests: list[Request], names: dict[str, str], causes_field: str) -> str:
    """Return the bar and the numbers of a ledger; ``names``: the threads' fields for the loop's."""
    shown = LEDGER if not names else tuple(kind for kind in LEDGER if kind.field in names)
    parts = {kind: mean(requests, names.get(kind.field, kind.field)) for kind in shown}
    picture = bar([(kind, part or 0) for kind, part in parts.items()], BAR)
    largest = max(parts, key=lambda kind: parts[kind] or 0)
    text = ""
    for kind, width in zip(LEDGER, (6, 6, 6, 6, 7), strict=True):
        value = "" if kind not in parts else ms(parts[kind])
        number = f"{value:>{width}}"
        text += paint(number, 1, kind.colour) if kind is largest else number
        if kind.field == "blocked_ns":
            reasons = causes(mean_causes(requests, causes_field))
            text += f" {reasons[0][0] if reasons and reasons[0][1] >= 50_000 else '':5}"
    return picture + text
