"""Settings of the bookshop; kerneltrace is the three lines that name it.

Environment: DATABASE_URL (postgresql://user:password@host:port/name, else SQLite), DJANGO_DEBUG=1,
BOOKSHOP_DATA (the folder of the database and the uploads).
"""

from __future__ import annotations

import os
from pathlib import Path

from bookshop.database import database

BASE_DIR = Path(__file__).resolve().parents[1]
DATA_DIR = Path(os.environ.get("BOOKSHOP_DATA", BASE_DIR))
DEBUG = os.environ.get("DJANGO_DEBUG") == "1"
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "not a secret: an example on loopback")
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
ROOT_URLCONF = "bookshop.urls"
WSGI_APPLICATION = "bookshop.wsgi.application"

INSTALLED_APPS = [
    "kerneltrace_django",
    "books",
]
MIDDLEWARE = [
    "kerneltrace_django.middleware.KernelTraceMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
KERNELTRACE = {"SLOW_REQUEST_MS": 500, "SERVER_TIMING": DEBUG}

DATABASES = {"default": database(os.environ.get("DATABASE_URL"), DATA_DIR / "bookshop.db")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
TIME_ZONE = "UTC"
USE_TZ = True

# A line for each request takes the kernel_* fields that its format names.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"kernel": {"()": "kerneltrace_django.logs.KernelStatsFilter"}},
    "formatters": {
        "line": {"format": "%(levelname)s %(name)s: %(message)s [cpu %(kernel_cpu_ms)s ms]"}
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["kernel"]}
    },
    "root": {"handlers": ["console"], "level": "INFO" if DEBUG else "WARNING"},
}
