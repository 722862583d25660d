"""What the kernel did for each background task: Celery's, and those of Django's tasks framework.

Wired by the application's ``ready`` where Celery is imported by then, as its documentation for
Django has it, or a tasks framework is installed; else call ``connect`` once.
"""

from __future__ import annotations

import logging
import sys
import threading
from importlib import import_module
from random import random
from typing import Any

from django.apps import apps
from django.dispatch import Signal

from kerneltrace_core import KernelTraceError
from kerneltrace_core.exporters.logs import EventLog, kernel_fields, summary
from kerneltrace_core.requests import KernelStats, greenlet_library, request_here
from kerneltrace_django.settings import DjangoOptions, options
from kerneltrace_django.work import Work, start_tracer

__all__ = ["connect", "kernel_task_finished"]

# Sent with task_id, name, state (the framework's word) and stats (final KernelStats), once for
# each traced task, on the thread that ran it. The sender is what the framework's signal has sent:
# Celery's task, Django's backend class.
kernel_task_finished = Signal()

log = logging.getLogger("kerneltrace")
events = EventLog("kerneltrace.task")

# By thread and id: a message that was delivered twice runs twice.
_running: dict[tuple[int, str], Work] = {}
_warned: set[str] = set()


def connect() -> None:
    """Trace the tasks of every framework that is there; may be called again."""
    if "celery" in sys.modules:
        signals = import_module("celery.signals")
        uid = "kerneltrace_django.tasks"
        signals.task_prerun.connect(_celery_begins, weak=False, dispatch_uid=uid)
        signals.task_postrun.connect(_celery_ends, weak=False, dispatch_uid=uid)
    for package in _frameworks():
        signals = import_module(f"{package}.signals")
        signals.task_started.connect(_django_begins, dispatch_uid=f"kerneltrace.{package}")
        signals.task_finished.connect(_django_ends, dispatch_uid=f"kerneltrace.{package}")


def _frameworks() -> list[str]:
    found = ["django_tasks"] if apps.is_installed("django_tasks") else []
    try:
        import_module("django.tasks")
    except ImportError:  # before Django 6
        return found
    return [*found, "django.tasks"]


def _celery_begins(task_id: str, task: Any, **_signal: Any) -> None:
    work = begin(task_id)
    # As a view has request.kerneltrace: self.request.kerneltrace, live.
    task.request.kerneltrace = work.stats if work is not None else KernelStats.off()


def _celery_ends(sender: Any, task_id: str, task: Any, state: Any = None, **_signal: Any) -> None:
    end(task_id, sender, task.name, state)


def _django_begins(task_result: Any, **_signal: Any) -> None:
    begin(str(task_result.id))


def _django_ends(sender: Any, task_result: Any, **_signal: Any) -> None:
    end(str(task_result.id), sender, task_result.task.module_path, str(task_result.status))


def begin(task_id: str) -> Work | None:
    """Have this thread work for a task from now on; None if it is not traced.

    Inside a request or another task, where frameworks run tasks at once for tests, it is that
    one's work. Starts tracing in a process's first task, which takes up to 90 ms.
    """
    chosen = options()
    if not chosen.enabled or request_here() is not None or _threads_are_greenlets():
        return None
    if chosen.sample_rate < 1 and random() >= chosen.sample_rate:
        return None
    try:
        tracer = start_tracer()
    except KernelTraceError as error:
        _warn(f"trace tasks: {error}")  # nobody could answer an error here
        return None
    if not tracer.ready:
        return None
    work = _running[threading.get_ident(), task_id] = Work(tracer)
    return work


def end(task_id: str, sender: Any, name: str, state: str | None) -> None:
    """End what ``begin`` began on this thread, and tell whoever wants to know."""
    work = _running.pop((threading.get_ident(), task_id), None)
    if work is None:
        return
    work.end()
    about = {"task": name, "task_id": task_id, "state": state}
    kernel_task_finished.send_robust(
        sender, task_id=task_id, name=name, state=state, stats=work.stats
    )
    _write(work.stats, about, options())


def _write(stats: KernelStats, about: dict[str, Any], chosen: DjangoOptions) -> None:
    slow_ms, wall_ns = chosen.slow_request_ms, stats.wall_ns or 0
    level = chosen.log_level if slow_ms is None else logging.WARNING
    if (slow_ms is not None and wall_ns < slow_ms * 1_000_000) or not events.enabled(level):
        return
    fields = kernel_fields(stats)
    took_ms = fields["kernel_wall_ms"]
    told = summary(fields)
    text = f"{about['task']} {about['state'] or '-'} in {took_ms} ms{told and ': ' + told}"
    event = "task" if slow_ms is None else "slow_task"
    events.write(level, event, text, {**about, "duration_ms": took_ms, **fields})


def _threads_are_greenlets() -> bool:
    module = greenlet_library()
    if module is None:
        return False
    _warn(f"trace tasks: {module} has many on one thread (use prefork or threads)")
    return True


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        log.warning("%s; tasks are not traced", message)
