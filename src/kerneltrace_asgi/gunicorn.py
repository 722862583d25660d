"""Hooks for gunicorn.conf.py: the master loads once, its workers join without any capability.

``from kerneltrace_asgi.gunicorn import when_ready, pre_fork, post_fork, child_exit``. Hooks of your
own call these with the same arguments. They serve WSGI workers as well, and ``--preload``.
"""

from __future__ import annotations

from typing import Any

from kerneltrace_core.requests import TracerOptions, resolve
from kerneltrace_core.requests.preload import forget, preload, reserve

__all__ = ["child_exit", "post_fork", "pre_fork", "when_ready"]

# A worker that is replaced lives for a while beside the one that replaces it.
SPARE = 2


def when_ready(server: Any) -> None:
    """In the master, before it forks: load the programs for its workers; blocks for 60 ms.

    Options come from the environment, KERNELTRACE_PROBES for one. Needs CAP_BPF and CAP_PERFMON
    (or root) in the master alone. Raises KernelTraceError only with KERNELTRACE_REQUIRED=1.
    """
    preload(int(server.cfg.workers) + SPARE)


def pre_fork(server: Any, worker: Any) -> None:  # noqa: ARG001 - gunicorn's signature
    """In the master: have room for the worker that is about to be forked."""
    reserve(1)


def post_fork(server: Any, worker: Any) -> None:  # noqa: ARG001 - gunicorn's signature
    """In the worker: give up what it will not use. It joins when the application starts tracing."""
    if not resolve(TracerOptions).enabled:
        forget()


def child_exit(server: Any, worker: Any) -> None:  # noqa: ARG001 - gunicorn's signature
    """In the master: have room for the next worker. The kernel has freed what this one had."""
    reserve(1)
