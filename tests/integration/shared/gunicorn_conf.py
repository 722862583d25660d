"""Hooks of a site's own around those of kerneltrace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kerneltrace_asgi import gunicorn as kerneltrace
from kerneltrace_asgi.gunicorn import child_exit, pre_fork, when_ready

__all__ = ["child_exit", "post_fork", "pre_fork", "when_ready"]


def post_fork(server: Any, worker: Any) -> None:
    """Do something of the site's own as well."""
    kerneltrace.post_fork(server, worker)
    with (Path(os.environ["SERVED_FOLDER"]) / "forked").open("a") as file:
        file.write(f"{os.getpid()}\n")
