"""A Celery worker of a Django project: `python -m integration.celery_site POOL COUNT`.

Sends itself COUNT tasks through the broker in memory, and prints what each cost as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from django.conf import settings

BYTES = 512
CONCURRENCY = 3

REPORT = Path(os.environ.get("CELERY_SITE_REPORT", tempfile.gettempdir())) / "tasks.jsonl"

app = Celery("site", broker="memory://", backend="cache+memory://", set_as_current=True)
app.conf.update(
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
    task_ignore_result=True,
)


def configure(**given: Any) -> None:
    import django

    settings.configure(
        SECRET_KEY="for tests",
        INSTALLED_APPS=["kerneltrace_django"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        LOGGING_CONFIG=None,
        KERNELTRACE={"REQUIRED": True, "BACKEND": "bpf", **given},
    )
    django.setup()


def read(times: int) -> None:
    with Path("/dev/zero").open("rb", buffering=0) as zero:
        for _ in range(times):
            os.pread(zero.fileno(), BYTES, 0)
            time.sleep(0.0005)


@app.task(bind=True)
def reads(self: Any, times: int, fail: bool = False) -> None:
    """Read so many times, query, and note the live number."""
    from django.db import connection

    read(times)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    calls = {call.name: call.calls for call in self.request.kerneltrace.top_syscalls}
    note(live=calls["pread64"], task_id=self.request.id, times=times)
    if fail:
        raise ValueError("as asked")


def note(**facts: Any) -> None:
    line = json.dumps({"pid": os.getpid(), "thread": threading.get_ident(), **facts}) + "\n"
    with REPORT.open("a") as file:
        file.write(line)


def finished(task_id: str, name: str, state: str, stats: Any, **_signal: Any) -> None:
    calls = {call.name: call.calls for call in stats.top_syscalls}
    note(
        task_id=task_id,
        name=name,
        state=state,
        final=calls.get("pread64", 0),
        attribution=stats.attribution,
        blocked_by=stats.blocked_by,
        wall_ns=stats.wall_ns,
        queries=stats.db["default"].queries,
        parts_ns=stats.cpu_ns + stats.run_queue_ns + stats.blocked_ns + stats.suspended_ns,
    )


def main(pool: str, count: int) -> None:
    configure()
    from kerneltrace_django.tasks import kernel_task_finished

    kernel_task_finished.connect(finished)

    def send_then_stop() -> None:
        for number in range(count):
            reads.delay(1 + number * 7 % 23, fail=number % 5 == 4)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            done = REPORT.read_text().count('"final"') if REPORT.exists() else 0
            if done >= count:
                break
            time.sleep(0.05)
        worker.stop()

    worker = app.Worker(
        pool=pool,
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
        # Not before the pool has forked: sending imports modules, and a child that is forked
        # in the middle of an import waits for that module's lock for ever.
        sender.start()

    worker.start()


if __name__ == "__main__":
    # Under its importable name: the pool's processes and the broker look tasks up by it.
    from integration import celery_site

    celery_site.main(sys.argv[1], int(sys.argv[2]))
