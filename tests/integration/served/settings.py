"""The settings of the site that the tests have served; what differs comes from the environment."""

from __future__ import annotations

import importlib
import json
import os

SECRET_KEY = "for tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "integration.served.views"
WSGI_APPLICATION = "integration.served.wsgi.application"
INSTALLED_APPS = ["kerneltrace_django"]
MIDDLEWARE = ["kerneltrace_django.middleware.KernelTraceMiddleware"]
LOGGING = {
    "version": 1,
    # Half of what is served here fails on purpose.
    "loggers": {"django.request": {"level": "CRITICAL"}, "django.server": {"level": "CRITICAL"}},
}
KERNELTRACE = {
    "BACKEND": "bpf",
    "EXCLUDED_URLS": ["/-/"],
    "ON_REQUEST": "integration.served.report.write",
    **json.loads(os.environ.get("SERVED_KERNELTRACE", "{}")),
}
if watched := os.environ.get("SERVED_WATCHED_MODULE"):
    importlib.import_module(watched)
