"""A request's ledger for people: its parts, which add up to its time, and a page of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kerneltrace_core.requests import KernelStats

__all__ = ["PARTS", "duration", "page", "size"]

# Together they are wall_ns; in the order in which they are shown.
PARTS = (
    ("cpu_ns", "On CPU"),
    ("run_queue_ns", "Waiting for a CPU"),
    ("blocked_ns", "Blocked"),
    ("loop_wait_ns", "Waiting for the event loop"),
    ("suspended_ns", "Suspended, nothing ready"),
    ("nested_ns", "Requests made in process"),
)
TOP_SYSCALLS = 6
WIDTH = 26
LEAST_SHARE = 1000  # a part smaller than one of so many is not told


def duration(ns: int) -> str:
    """Return a time with the unit that suits it: ``1.234 s``, ``12.3 ms``, ``45 us``."""
    if ns >= 1_000_000_000:
        return f"{ns / 1e9:.3f} s"
    if ns >= 1_000_000:
        return f"{ns / 1e6:.1f} ms"
    return f"{ns / 1000:.1f} us" if 0 < ns < 10_000 else f"{ns / 1000:.0f} us"


def size(count: int) -> str:
    """Return a number of bytes with the unit that suits it."""
    if count < 1000:
        return f"{count} B"
    amount, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.1f} {unit}"


def page(title: str, stats: KernelStats) -> str:
    """Return the whole ledger as lines of text; what is unknown or did not happen is left out."""
    if stats.wall_ns is None:
        return f"{title}: not traced\n"
    lines = [f"{title}: {duration(stats.wall_ns)} ({stats.backend})"]
    for name, told in _lines(stats.as_dict(), getattr(stats, "db", None)):
        lines.append(f"  {name:{WIDTH}}{told}")
    return "\n".join(lines) + "\n"


def _lines(known: Mapping[str, Any], db: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    for field, name in PARTS:
        ns = known[field]
        if field == "cpu_ns" or (ns or 0) * LEAST_SHARE > known["wall_ns"]:
            causes = causes_of(known["blocked_by"]) if field == "blocked_ns" else ""
            yield name.lower(), _share(ns, known["wall_ns"], causes)
    if known["threads"]:
        told = f"{known['threads']}, together {duration(known['thread_ns'])}"
        parts = (("thread_cpu_ns", "CPU"), ("thread_blocked_ns", "blocked"))
        more = [f"{duration(known[field])} {name}" for field, name in parts if known[field]]
        yield "other threads", ", ".join((told, *more))
    yield from _work(known)
    for alias, work in (db or {}).items():
        yield f"database {alias}", database(work)


def _share(ns: int | None, wall_ns: int, causes: str) -> str:
    if ns is None:
        return "unknown"
    return f"{duration(ns):>10}  {100 * ns / (wall_ns or 1):3.0f}%{causes and '  ' + causes}"


def causes_of(causes: Mapping[str, int] | None) -> str:
    """Return the causes of blocked time, the largest first."""
    happened = sorted((causes or {}).items(), key=lambda each: each[1], reverse=True)
    return ", ".join(f"{cause} {duration(ns)}" for cause, ns in happened if ns)


def _work(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if known["syscalls"] is not None:
        top = ", ".join(
            f"{call.name} {call.calls}" for call in known["top_syscalls"][:TOP_SYSCALLS]
        )
        failed = f", {known['syscall_errors']} failed" if known["syscall_errors"] else ""
        took = f" in {duration(known['syscall_ns'])}" if known["syscall_ns"] else ""
        yield "system calls", f"{known['syscalls']}{failed}{took}: {top}"
    yield from _counted(
        known,
        ("files", (("read_bytes", "read"), ("write_bytes", "written")), ("opens", "fsyncs")),
        (
            "disk",
            (("disk_read_bytes", "read"), ("disk_write_bytes", "written")),
            ("disk_reads", "disk_writes"),
        ),
        (
            "network",
            (("net_rx_bytes", "received"), ("net_tx_bytes", "sent")),
            ("connects", "tcp_retransmits"),
        ),
        ("processes", (), ("forks", "execs")),
        ("page faults", (), ("minor_faults", "major_faults")),
        ("context switches", (), ("ctx_voluntary", "ctx_involuntary")),
    )


def _counted(
    known: Mapping[str, Any], *rows: tuple[str, tuple[tuple[str, str], ...], tuple[str, ...]]
) -> Iterator[tuple[str, str]]:
    for name, sizes, counts in rows:
        told = [f"{size(known[field])} {what}" for field, what in sizes if known[field]]
        told += [f"{known[field]} {_words(field)}" for field in counts if known[field]]
        if told:
            yield name, ", ".join(told)


def _words(field: str) -> str:
    return field.removeprefix("disk_").removeprefix("ctx_").split("_faults")[0].replace("_", " ")


def database(work: Any) -> str:
    """Return one database's share in a line."""
    told = [f"{work.queries} {'query' if work.queries == 1 else 'queries'}"]
    if work.blocked_ns is not None:
        told.append(f"{duration(work.blocked_ns)} blocked")
    sizes = (
        *((work.rx_bytes, "received"), (work.tx_bytes, "sent")),
        *((work.read_bytes, "read"), (work.write_bytes, "written")),
    )
    told += [f"{size(count)} {what}" for count, what in sizes if count]
    return ", ".join(told)
