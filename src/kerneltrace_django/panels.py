"""KernelPanel: what the kernel did for the request, in the Django Debug Toolbar."""

from __future__ import annotations

from collections import Counter
from typing import Any

from debug_toolbar.panels import Panel
from django.apps import apps
from django.core import checks

from kerneltrace_core.requests import KernelStats
from kerneltrace_django import ledger
from kerneltrace_django.settings import NAME, load

__all__ = ["KernelPanel"]

TOP_SYSCALLS = 10
COLORS = {
    "cpu": "#2a9d5c",
    "run_queue": "#e9b63b",
    "blocked": "#d1495b",
    "loop_wait": "#8e5bb5",
    "suspended": "#9aa5b1",
    "nested": "#3d7ea6",
}
# A thread of the request is at work or not there.
OF_THREADS = ("cpu", "run_queue", "blocked")
# Of the causes of blocked time, which have a bar of their own.
CAUSES = {
    "other": "for something else",
    "disk": "disk",
    "net": "network",
    "lock": "lock",
    "sleep": "sleep",
    "pipe": "pipe",
    "poll": "poll: socket or file not ready",
    "fault": "page from disk",
    "child": "child process",
}
WORK = (
    ("Read from files", "read_bytes", True),
    ("Written to files", "write_bytes", True),
    ("Received on sockets", "net_rx_bytes", True),
    ("Sent on sockets", "net_tx_bytes", True),
    ("Read from disk", "disk_read_bytes", True),
    ("Written to disk", "disk_write_bytes", True),
    ("Files opened", "opens", False),
    ("fsync", "fsyncs", False),
    ("Connections made", "connects", False),
    ("Child processes", "forks", False),
    ("Major page faults", "major_faults", False),
    ("Voluntary context switches", "ctx_voluntary", False),
    ("Involuntary context switches", "ctx_involuntary", False),
)
EVERYTHING = 1000  # the width of the bar


class KernelPanel(Panel):
    """Show the ledger of ``request.kerneltrace``.

    It covers the request from KernelTraceMiddleware to the moment at which the toolbar asks its
    panels, other panels' own work included. Right under concurrency and ASGI: the numbers are the
    request's, and not the process's.
    """

    title = "Kernel"
    nav_icon = "kerneltrace_django/kernel.svg"
    template = "kerneltrace_django/panel.html"
    is_async = True

    @property
    def nav_subtitle(self) -> str:
        """Tell the time off CPU in one line."""
        told: str = self.get_stats().get("subtitle", "")
        return told

    def generate_stats(self, request: Any, _response: Any) -> None:
        """Record what is known by now, as JSON can say it."""
        stats = getattr(request, "kerneltrace", None)
        self.record_stats(describe(stats if stats is not None else KernelStats.off()))

    def generate_server_timing(self, _request: Any, _response: Any) -> None:
        """Add the parts of the ledger to the toolbar's own Server-Timing."""
        for ledger_ in self.get_stats().get("ledgers", ())[:1]:
            for part in ledger_["parts"]:
                self.record_server_timing(part["key"], part["name"], part["ms"])

    @classmethod
    def run_checks(cls) -> list[checks.CheckMessage]:
        """W010: its template cannot be found. W011: there is nothing to show."""
        if not apps.is_installed("kerneltrace_django"):
            message = "KernelPanel is in DEBUG_TOOLBAR_PANELS without its application."
            hint = "Add 'kerneltrace_django' to INSTALLED_APPS."
            return [checks.Warning(message, hint=hint, id="kerneltrace.W010")]
        options = load()[0]
        if options.enabled and options.backend != "off":
            return []
        message = "KernelPanel will be empty: kernel tracing is switched off."
        hint = f"Take it out of DEBUG_TOOLBAR_PANELS, or see {NAME}['ENABLED'] and ['BACKEND']."
        return [checks.Warning(message, hint=hint, id="kerneltrace.W011")]


def duration(ns: int) -> str:
    """Return a time that is not broken into two lines."""
    return ledger.duration(ns).replace(" ", "\u00a0")


def size(count: int) -> str:
    """Return a number of bytes that is not broken into two lines."""
    return ledger.size(count).replace(" ", "\u00a0")


def describe(stats: KernelStats) -> dict[str, Any]:
    """Return what the template shows of stats, live or final: JSON's types, and ready to print."""
    known = stats.as_dict()
    wall_ns = known["wall_ns"]
    if wall_ns is None:
        return {"known": False, "subtitle": "not traced"}
    names = {field.removesuffix("_ns"): name for field, name in ledger.PARTS}
    parts = [(key, name, known[f"{key}_ns"]) for key, name in names.items()]
    told = {"title": f"{duration(wall_ns)} until the response was made"}
    ledgers = [{**told, **_ledger(parts, wall_ns, known["blocked_by"])}]
    if known["threads"]:
        count, together_ns = known["threads"], known["thread_ns"]
        others = "another thread" if count == 1 else f"{count} other threads"
        parts = [(key, names[key], known[f"thread_{key}_ns"]) for key in OF_THREADS]
        told = {"title": f"{duration(together_ns)} on {others}"}
        ledgers.append({**told, **_ledger(parts, together_ns, known["thread_blocked_by"])})
    return {
        "known": True,
        "subtitle": _subtitle(known),
        "backend": stats.backend,
        "attribution": stats.attribution,
        "ledgers": ledgers,
        "syscalls": _syscalls(known),
        "databases": _databases(getattr(stats, "db", None), wall_ns),
        "work": [
            {"name": name, "told": size(known[field]) if is_size else str(known[field])}
            for name, field, is_size in WORK
            if known[field]
        ],
    }


def _subtitle(known: dict[str, Any]) -> str:
    if known["blocked_ns"] is None:
        return ""
    # Under ASGI a plain view waits on a thread, and its event loop does not.
    bank = "thread_" if known["thread_blocked_ns"] > known["blocked_ns"] else ""
    ((cause, ns),) = Counter(known[f"{bank}blocked_by"] or {}).most_common(1) or [("", 0)]
    return f"{duration(known[f'{bank}blocked_ns'])} blocked{f' ({cause})' if ns else ''}"


def _width(ns: int, whole_ns: int) -> int:
    return round(EVERYTHING * min(ns, whole_ns) / whole_ns) if whole_ns else 0


def _ledger(
    parts: list[tuple[str, str, int | None]], whole_ns: int, blocked_by: dict[str, int] | None
) -> dict[str, Any]:
    shown, begun_ns = [], 0
    for key, name, ns in parts:
        if not ns:
            continue
        shown.append(
            {
                "key": key,
                "name": name,
                "color": COLORS[key],
                "time": duration(ns),
                "ms": round(ns / 1e6, 3),
                "percent": f"{100 * ns / (whole_ns or 1):.1f}",
                "x": _width(begun_ns, whole_ns),
                "width": _width(ns, whole_ns),
            }
        )
        begun_ns += ns
    causes = [each for each in Counter(blocked_by or {}).most_common() if each[1]]
    blocked_ns = sum(ns for _, ns in causes)
    return {
        "parts": shown,
        "causes": [
            {"name": CAUSES[cause], "time": duration(ns), "width": _width(ns, blocked_ns)}
            for cause, ns in causes
        ],
    }


def _syscalls(known: dict[str, Any]) -> dict[str, Any] | None:
    calls = known["top_syscalls"]
    if calls is None:
        return None
    most = max((call.ns or 0 for call in calls), default=0)
    return {
        "calls": known["syscalls"],
        "errors": known["syscall_errors"],
        "time": None if known["syscall_ns"] is None else duration(known["syscall_ns"]),
        "more": max(0, len(calls) - TOP_SYSCALLS),
        "top": [
            {
                "name": call.name,
                "calls": call.calls,
                "errors": call.errors,
                "time": None if call.ns is None else duration(call.ns),
                "width": _width(call.ns or 0, most),
            }
            for call in calls[:TOP_SYSCALLS]
        ],
    }


def _databases(db: Any, wall_ns: int) -> list[dict[str, Any]]:
    return [
        {
            "alias": alias,
            "queries": work.queries,
            "blocked": None if work.blocked_ns is None else duration(work.blocked_ns),
            "percent": f"{100 * (work.blocked_ns or 0) / (wall_ns or 1):.1f}",
            **{
                field: None if count is None else size(count)
                for field, count in work._asdict().items()
                if field.endswith("_bytes")
            },
        }
        for alias, work in (db or {}).items()
    ]
