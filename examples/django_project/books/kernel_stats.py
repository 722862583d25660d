"""Write each finished request's KernelStats to a file, if KERNEL_STATS_FOLDER says where."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from kerneltrace_django.signals import kernel_request_finished


def connect() -> None:
    if "KERNEL_STATS_FOLDER" in os.environ:
        kernel_request_finished.connect(write, dispatch_uid="books.kernel_stats")


def write(request: Any, stats: Any, **_: Any) -> None:
    """Append a line to the file of this worker process."""
    match = request.resolver_match
    line = {
        "route": match.view_name if match is not None else "none",
        "method": request.method,
        "ended_ns": time.monotonic_ns(),
        "pid": os.getpid(),
        **stats.as_dict(),
        "background": None,
    }
    folder = Path(os.environ["KERNEL_STATS_FOLDER"])
    with open(folder / f"{os.getpid()}.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
