"""What a worker writes down of each request that was traced: its job, and what it was charged."""

from __future__ import annotations

import json
import os
from typing import Any

from integration.served.jobs import FOLDER
from integration.truth.work import CALLS, Job
from kerneltrace_core.requests import KernelStats

LEDGER = ("cpu_ns", "run_queue_ns", "blocked_ns", "loop_wait_ns", "suspended_ns", "nested_ns")
THREADS = ("thread_cpu_ns", "thread_run_queue_ns", "thread_blocked_ns")
MOVED = ("read_bytes", "write_bytes", "net_tx_bytes")
REST = ("wall_ns", "thread_ns", "threads", "detached", "backend", "attribution")
CAUSES = ("blocked_by", "thread_blocked_by")


def write(request: Any, stats: KernelStats) -> None:
    """Append a line to this process's file; KERNELTRACE["ON_REQUEST"]."""
    job = getattr(request, "job", None)
    line = {
        "pid": os.getpid(),
        "path": request.path,
        "planned": job.planned if job else 0,
        "done": job.done if job else 0,
        "expected": expected(job) if job else {},
        "measured": getattr(request, "measured", None),
        "charged": charged(stats),
    }
    with open(FOLDER / f"{os.getpid()}.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def expected(job: Job) -> dict[str, int]:
    """Return what a job came to; one that was left may not have made all of its fsyncs."""
    return {**job.calls(), **job.bytes_moved(), "fsync": min(job.fsyncs, job.done)}


def charged(stats: KernelStats) -> dict[str, Any]:
    """Return what is compared, of one request or of nobody."""
    calls = {call.name: call for call in stats.top_syscalls or ()}
    found: dict[str, Any] = {name: calls[name].calls if name in calls else 0 for name in CALLS}
    found["misses"] = calls["openat"].errors if "openat" in calls else 0
    names = ("opens", *MOVED, *LEDGER, *THREADS, *REST, *CAUSES)
    return found | {name: getattr(stats, name) for name in names}
