"""A Celery worker that does COUNT tasks: `python -m integration.shared.celery_app COUNT`.

The module ``load_once``, on its path, is what the site does about tracing.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_ready

from kerneltrace_core.requests import RequestTracer, TracerOptions
from traced import calls_of, on_loop

CONCURRENCY = 3
REPORT = Path(os.environ["REPORT"])

app = Celery("shared", broker="memory://", set_as_current=True)
app.conf.update(
    worker_hijack_root_logger=False,
    worker_enable_remote_control=False,
    task_ignore_result=True,
    worker_max_tasks_per_child=4,
)


@app.task
def calls(times: int) -> None:
    """Make so many calls, and note what was counted."""
    tracer = RequestTracer.shared(TracerOptions(required=True))
    tracer.start()

    def work() -> None:
        for _ in range(times):
            os.getppid()

    counted = calls_of(on_loop(tracer, work)).get("getppid", 0)
    joined = tracer.health()["kernel_side"]["joined"]
    row = {"pid": os.getpid(), "done": times, "counted": counted, "joined": joined}
    with REPORT.open("a") as file:
        file.write(json.dumps(row) + "\n")


def main(count: int) -> None:
    """Run the worker until so many tasks are done."""
    importlib.import_module("load_once")

    def send_then_stop() -> None:
        for number in range(count):
            calls.delay(1 + number * 7 % 23)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if REPORT.exists() and len(REPORT.read_text().splitlines()) >= count:
                break
            time.sleep(0.05)
        worker.stop()

    worker = app.Worker(
        pool="prefork",
        concurrency=CONCURRENCY,
        loglevel="CRITICAL",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    sender = threading.Thread(target=send_then_stop, daemon=True)

    @worker_ready.connect(weak=False)
    def send(**_signal: Any) -> None:
        sender.start()

    worker.start()


if __name__ == "__main__":
    from integration.shared import celery_app

    celery_app.main(int(sys.argv[1]))
