"""The application's configuration."""

from __future__ import annotations

from django.apps import AppConfig


class BooksConfig(AppConfig):
    name = "books"

    def ready(self) -> None:
        from books import kernel_stats

        kernel_stats.connect()
