"""Django for every test in this process: configured once, changed by override_settings."""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings

MIDDLEWARE = "kerneltrace_django.middleware.KernelTraceMiddleware"

urlpatterns: list[Any] = []


def configure() -> None:
    """Set Django up, unless it is."""
    if settings.configured:
        return
    settings.configure(
        SECRET_KEY="for tests",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="django_site",
        INSTALLED_APPS=["kerneltrace_django"],
        MIDDLEWARE=[MIDDLEWARE],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        LOGGING_CONFIG=None,
        USE_TZ=True,
    )
    django.setup()
