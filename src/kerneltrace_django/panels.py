"""KernelPanel: what the kernel did for the request, in the Django Debug Toolbar."""

from __future__ import annotations

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
    "cpu_ns": "#2a9d5c",
    "run_queue_ns": "#e9b63b",
    "blocked_ns": "#d1495b",
    "loop_wait_ns": "#8e5bb5",
    "suspended_ns": "#9aa5b1",
    "nested_ns": "#3d7ea6",
}
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
    ("Other threads at work", "threads", False),
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
        for part in self.get_stats().get("parts", ()):
            self.record_server_timing(part["key"], part["name"], part["ms"])

    @classmethod
    def run_checks(cls) -> list[checks.CheckMessage]:
        """E003: its template cannot be found. W008: there is nothing to show."""
        if not apps.is_installed("kerneltrace_django"):
            message = "KernelPanel is in DEBUG_TOOLBAR_PANELS without its application."
            hint = "Add 'kerneltrace_django' to INSTALLED_APPS."
            return [checks.Error(message, hint=hint, id="kerneltrace.E003")]
        options = load()[0]
        if options.enabled and options.backend != "off":
            return []
        message = "KernelPanel will be empty: kernel tracing is switched off."
        hint = f"Take it out of DEBUG_TOOLBAR_PANELS, or see {NAME}['ENABLED'] and ['BACKEND']."
        return [checks.Warning(message, hint=hint, id="kerneltrace.W008")]


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
    causes = sorted((known["blocked_by"] or {}).items(), key=lambda each: each[1], reverse=True)
    largest = f" ({causes[0][0]})" if causes and causes[0][1] else ""
    off_ns = known["blocked_ns"]
    return {
        "known": True,
        "subtitle": "" if off_ns is None else f"{duration(off_ns)} blocked{largest}",
        "wall": duration(wall_ns),
        "backend": stats.backend,
        "attribution": stats.attribution,
        "parts": _parts(known, wall_ns),
        "causes": [
            {"name": CAUSES.get(cause, cause), "time": duration(ns), "width": _width(ns, off_ns)}
            for cause, ns in causes
            if ns
        ],
        "syscalls": _syscalls(known),
        "databases": _databases(getattr(stats, "db", None), wall_ns),
        "work": [
            {"name": name, "told": size(known[field]) if is_size else str(known[field])}
            for name, field, is_size in WORK
            if known[field]
        ],
    }


def _width(ns: int, whole_ns: int | None) -> int:
    return round(EVERYTHING * min(ns, whole_ns) / whole_ns) if whole_ns else 0


def _parts(known: dict[str, Any], wall_ns: int) -> list[dict[str, Any]]:
    parts, begun_ns = [], 0
    for field, name in ledger.PARTS:
        ns = known[field]
        if not ns:
            continue
        parts.append(
            {
                "key": field.removesuffix("_ns"),
                "name": name,
                "color": COLORS[field],
                "time": duration(ns),
                "ms": round(ns / 1e6, 3),
                "percent": f"{100 * ns / (wall_ns or 1):.1f}",
                "x": _width(begun_ns, wall_ns),
                "width": _width(ns, wall_ns),
            }
        )
        begun_ns += ns
    return parts


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
