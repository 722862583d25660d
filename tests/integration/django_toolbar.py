"""A site with the Debug Toolbar: `python -m integration.django_toolbar PORT`."""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from django.conf import settings

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body><h1>{title}</h1><p>What the kernel did for this page is in the toolbar.</p></body></html>"""

FOLDER = Path(os.environ.get("TOOLBAR_FOLDER") or tempfile.gettempdir())
SLEPT_S, WAITED_S = 0.05, 0.12


def configure() -> None:
    """Set up a project as the toolbar's documentation and ours say."""
    settings.configure(
        DEBUG=True,
        SECRET_KEY="for tests",
        ALLOWED_HOSTS=["127.0.0.1"],
        INTERNAL_IPS=["127.0.0.1"],
        ROOT_URLCONF=__spec__.name if __spec__ else __name__,
        INSTALLED_APPS=["django.contrib.staticfiles", "debug_toolbar", "kerneltrace_django"],
        MIDDLEWARE=[
            "kerneltrace_django.middleware.KernelTraceMiddleware",
            "debug_toolbar.middleware.DebugToolbarMiddleware",
        ],
        TEMPLATES=[
            {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
        ],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(FOLDER / "site.sqlite3"),
            }
        },
        STATIC_URL="/static/",
        USE_TZ=True,
        DEBUG_TOOLBAR_PANELS=[
            "debug_toolbar.panels.timer.TimerPanel",
            "debug_toolbar.panels.sql.SQLPanel",
            "kerneltrace_django.panels.KernelPanel",
        ],
        KERNELTRACE={"REQUIRED": True, "BACKEND": os.environ.get("TOOLBAR_BACKEND", "bpf")},
    )


def index(request: Any) -> Any:
    """Do some of everything: queries, a sleep, a wait for a socket, a file, and some work."""
    from django.db import connection
    from django.http import HttpResponse

    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS visit (at REAL, padding BLOB)")
        for _ in range(5):
            cursor.execute("INSERT INTO visit VALUES (%s, zeroblob(20000))", [time.time()])
        cursor.execute("SELECT count(*), sum(length(padding)) FROM visit")
        count = cursor.fetchone()[0]
    time.sleep(SLEPT_S)
    here, there = socket.socketpair()
    with here, there:
        answer = threading.Timer(WAITED_S, there.send, [b"x" * 5000])
        answer.start()
        here.recv(5000)
        answer.join()
    with tempfile.TemporaryFile() as file:
        file.write(bytes(300_000))
        file.flush()
        os.fsync(file.fileno())
    sum(number * number for number in range(300_000))
    return HttpResponse(PAGE.format(title=f"Visit {count}"))


def urls() -> list[Any]:
    from debug_toolbar.toolbar import debug_toolbar_urls
    from django.urls import path

    return [path("", index), *debug_toolbar_urls()]


def __getattr__(name: str) -> Any:
    # Made when Django asks: the toolbar's need the settings.
    if name == "urlpatterns":
        return urls()
    raise AttributeError(name)


if __name__ == "__main__":
    configure()
    from django.core.management import execute_from_command_line

    sqlite3.connect(FOLDER / "site.sqlite3").close()
    execute_from_command_line(["manage.py", "runserver", "--noreload", f"127.0.0.1:{sys.argv[1]}"])
