"""The application's configuration: wires checks, settings and logs, and starts nothing."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["KernelTraceConfig"]


class KernelTraceConfig(AppConfig):
    """Say what there is to Django."""

    name = "kerneltrace_django"
    verbose_name = "kerneltrace"

    def ready(self) -> None:
        """Wire what listens to Django; never raises.

        Nothing is started: this also runs in the reloader's parent, in every management command,
        and under ``gunicorn --preload`` in the master alone.
        """
        from kerneltrace_django import checks, db, logs, recent, settings, tasks

        settings.connect()
        checks.connect()
        logs.connect()
        db.connect()
        recent.connect()
        tasks.connect()
