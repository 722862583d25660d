"""Django of benchmarks/django_server.py: one process with every variant, under WSGI and ASGI.

GET /tracing/on and /tracing/off start and stop tracing, /tracing/cpu tells the CPU time used; the
rest goes to the variant that the path begins with.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import django
from benchmarks import apps
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import override_settings
from django.urls import path
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from kerneltrace_core.requests import RequestTracer
from kerneltrace_django.settings import options

BACKEND = os.environ.get("BENCH_BACKEND", "bpf")
OURS = "kerneltrace_django.middleware.KernelTraceMiddleware"
WSGI = os.environ.get("BENCH_INTERFACE") == "wsgi"


def _never(request: HttpRequest) -> HttpResponse:
    del request
    return HttpResponse(apps.BODY, content_type="application/json")


async def _never_async(request: HttpRequest) -> HttpResponse:
    return _never(request)


def _switch(request: HttpRequest, to: str) -> JsonResponse:
    del request
    tracer = RequestTracer.shared(options().tracer)
    if to != "cpu":
        (tracer.start if to == "on" else tracer.stop)()
    return JsonResponse({"backend": tracer.backend, "cpu_ns": time.process_time_ns()})


urlpatterns = [
    path(apps.NEVER[1:], _never if WSGI else _never_async),
    path("tracing/<to>", _switch),
]


def _configure() -> None:
    settings.configure(
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["kerneltrace_django"],
        LOGGING_CONFIG=None,
        KERNELTRACE={"BACKEND": BACKEND},
    )
    django.setup()
    logging.getLogger("kerneltrace").setLevel(logging.WARNING)


def _otel(kind: Any) -> Any:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(apps.NullExporter()))
    with override_settings(MIDDLEWARE=[]):
        DjangoInstrumentor().instrument(
            tracer_provider=provider, meter_provider=NoOpMeterProvider()
        )
        return kind()


def _variants(kind: Any) -> dict[str, Any]:
    made = {}
    for name, chain in (("plain", []), ("traced", [OURS])):
        with override_settings(MIDDLEWARE=chain):
            made[name] = kind()
    return {**made, "tracing": made["plain"], "otel": _otel(kind)}


class _Wsgi:
    def __init__(self) -> None:
        from django.core.handlers.wsgi import WSGIHandler

        self._variants = _variants(WSGIHandler)

    def __call__(self, environ: Any, start_response: Any) -> Any:
        _, variant, rest = environ["PATH_INFO"].split("/", 2)
        if variant != "tracing":
            environ["PATH_INFO"] = f"/{rest}"
        return self._variants[variant](environ, start_response)


class _Asgi:
    def __init__(self) -> None:
        from django.core.handlers.asgi import ASGIHandler

        self._variants = _variants(ASGIHandler)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        _, variant, rest = scope["path"].split("/", 2)
        if variant != "tracing":
            scope["path"] = f"/{rest}"
        await self._variants[variant](scope, receive, send)


_configure()
application = _Wsgi() if WSGI else _Asgi()
