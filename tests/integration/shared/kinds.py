"""Servers with several workers, and how their workers come by the programs."""

from __future__ import annotations

import sys

from integration.served.servers import GUNICORN, Kind

SITE = "integration.shared.site:application"
CONF = "--config python:integration.shared.gunicorn_conf --worker-class asgi"
RUN = (sys.executable, "-m", "kerneltrace_core.cli", "run", "--required", "--processes", "12", "--")
UVICORN = "--port {port} --log-level warning --loop asyncio"
HYPERCORN = "--bind 127.0.0.1:{port} --workers 2"
GRANIAN = "--interface asgi --port {port} --workers 2"

WORKERS = {
    "gunicorn": (Kind("gunicorn", f"{GUNICORN} {CONF} --workers 8 {SITE}", 8), "inherited"),
    "gunicorn --preload": (
        Kind("gunicorn", f"{GUNICORN} {CONF} --preload --workers 8 {SITE}", 8),
        "inherited",
    ),
    "gunicorn without hooks": (
        Kind("gunicorn", f"{GUNICORN} --worker-class asgi --workers 2 {SITE}", 2),
        "pins",
    ),
    "uvicorn --workers": (Kind("uvicorn", f"{UVICORN} --workers 4 {SITE}", 4), "pins"),
    "uvicorn --reload": (Kind("uvicorn", f"{UVICORN} --reload {SITE}"), "pins"),
    "hypercorn": (Kind("hypercorn", f"{HYPERCORN} {SITE}", 2), "pins"),
    "granian": (Kind("granian", f"{GRANIAN} {SITE}", 2), "pins"),
}
