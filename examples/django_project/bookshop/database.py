"""What DATABASE_URL means to Django."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


def database(url: str | None, sqlite: Path) -> dict[str, Any]:
    """Return an entry of DATABASES: PostgreSQL if there is a URL, else SQLite in that file."""
    if not url:
        # Writers wait for each other; the default of 5 s is short for a demo on a busy machine.
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": sqlite,
            "OPTIONS": {"timeout": 30},
        }
    parts = urlsplit(url)
    if parts.scheme not in ("postgres", "postgresql"):
        raise ValueError(f"read DATABASE_URL: {parts.scheme!r} is not postgresql")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),
        "PORT": parts.port or "",
        "CONN_MAX_AGE": 60,
    }
