"""The full ledger of one request: every part of its wall time, and what it asked of the kernel."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from tour.paint import LEDGER, WIDTH, Kind, bar, bold, causes, ms, paint, size

Request = dict[str, Any]
SHARE = 40
NESTED = Kind("nested_ns", "nested", "+", 34)
DOUBT = Kind("", "wait/suspended", "?", 35)
COUNTS = (
    ("opens", "opened"),
    ("connects", "connected"),
    ("fsyncs", "fsynced"),
    ("ctx_voluntary", "waited"),
    ("ctx_involuntary", "preempted"),
)
MOVED = (
    ("read_bytes", "read"),
    ("write_bytes", "written"),
    ("net_rx_bytes", "received"),
    ("net_tx_bytes", "sent"),
    ("disk_write_bytes", "to disk"),
)


def ledger(request: Request) -> Iterator[str]:
    """Yield the lines of the picture."""
    wall = request["wall_ns"]
    asked = f"{request.get('method', 'GET')} {request['route']}"
    told = f"{asked}   {ms(wall, 2)} ms   backend {request['backend']}, "
    yield bold("The slowest request   ") + told + f"attribution {request['attribution']}"
    parts = split(request)
    yield "  " + bar([(kind, ns or 0) for kind, ns in parts], WIDTH - 4)
    yield ""
    for kind, ns in parts:
        yield from lines(kind, ns, wall, remark(kind, request))
    known = sum(ns for _, ns in parts if ns is not None)
    yield f"  {'= wall':14}{ms(known, 2):>9} ms  measured {ms(wall, 2)} ms"
    if request["threads"]:
        yield from threads(request)
    yield from kernel(request)


def split(request: Request) -> list[tuple[Kind, int | None]]:
    """Return the parts of the wall time, which they add up to.

    When the kernel did not tell at what moment the request became ready, some of the time may be
    either of loop wait and suspended.
    """
    parts = {kind: request[kind.field] for kind in LEDGER}
    *_, loop_wait, suspended = LEDGER
    found = [(kind, ns) for kind, ns in parts.items() if kind is not suspended]
    rest, waited = parts[suspended], parts[loop_wait]
    # None: a request that has its thread to itself waits for no loop.
    if request["loop_wait_exact"] is False and rest is not None and waited is not None:
        doubt = min(request["loop_wait_max_ns"] - waited, rest)
        found.append((DOUBT, doubt))
        rest -= doubt
    found.append((suspended, rest))
    if request["nested_ns"]:
        found.append((NESTED, request["nested_ns"]))
    return found


def lines(kind: Kind, ns: int | None, whole: int, remark: str) -> Iterator[str]:
    """Yield one part: milliseconds, share, the share as a bar; below it a remark that is long."""
    percent = "" if ns is None or not whole else f"{100 * ns / whole:5.1f} %"
    length = round(SHARE * (ns or 0) / whole) if whole else 0
    numbers = f"  {kind.name:14}{ms(ns, 2):>9} ms  {percent:7}  "
    drawn = paint(kind.sign * length, kind.colour) + " " * bool(length)
    if len(numbers) + length + 1 + len(remark) <= WIDTH:
        yield f"{numbers}{drawn}{remark}".rstrip()
        return
    yield f"{numbers}{drawn}".rstrip()
    indent = " " * len(numbers)
    # A name stays with its number.
    kept = remark.replace(", ", ",").replace(" ", "\N{NO-BREAK SPACE}").replace(",", ", ")
    for each in textwrap.wrap(kept, WIDTH, initial_indent=indent, subsequent_indent=indent):
        yield each.replace("\N{NO-BREAK SPACE}", " ")


def remark(kind: Kind, request: Request, prefix: str = "") -> str:
    """Say more of a part, where there is more."""
    if kind.field == "blocked_ns":
        found = causes(request[prefix + "blocked_by"])
        return ", ".join(f"{name} {ms(ns, 2)}" for name, ns in found)
    if kind is DOUBT:
        return "one of the two"
    return ""


def threads(request: Request) -> Iterator[str]:
    """Yield the second ledger, that of other threads."""
    whole = request["thread_ns"]
    count = request["threads"]
    yield ""
    yield f"  in {count} other thread{'s' * (count > 1)}, meanwhile: {ms(whole, 2)} ms"
    for kind in LEDGER[:3]:
        said = remark(kind, request, "thread_")
        yield from lines(kind, request["thread_" + kind.field], whole, said)


def kernel(request: Request) -> Iterator[str]:
    """Yield what was asked of the kernel; nothing of what the backend does not see."""
    counts = [f"{name} {request[field]}" for field, name in COUNTS if request[field]]
    moved = [f"{name} {size(request[field])}" for field, name in MOVED if request[field]]
    if counts or moved:
        yield ""
        yield "  " + ", ".join(counts + moved)
    calls = request["top_syscalls"]
    if not calls:
        return
    failed = f", {request['syscall_errors']} of them failed" if request["syscall_errors"] else ""
    taken = "" if request["syscall_ns"] is None else f", {ms(request['syscall_ns'], 2)} ms in them"
    yield f"  {request['syscalls']} system calls{failed}{taken}; the longest:"
    for name, count, errors, ns in calls[:5]:
        yield f"    {name:16}{count:5} x {ms(ns, 3):>10} ms{f'  {errors} failed' if errors else ''}"
