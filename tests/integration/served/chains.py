"""The site once for each chain of middleware, by the first part of the path: WSGI and ASGI."""

from __future__ import annotations

from typing import Any

import django
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings

from integration.served.jobs import job_of, nobodys

OURS = "kerneltrace_django.middleware.KernelTraceMiddleware"
OUTSIDE = f"{__name__}.outside"
INSIDE = f"{__name__}.inside"
EITHER = f"{__name__}.Either"
CHAINS = {
    "alone": [OURS],
    "before": [OUTSIDE, OURS],
    "after": [OURS, INSIDE],
    "around": [OUTSIDE, OURS, EITHER, INSIDE],
}


def outside(get_response: Any) -> Any:
    """Be sync-only, as most middleware is, and do work that is not the request's."""

    def middleware(request: Any) -> Any:
        nobodys.unit()
        response = get_response(request)
        nobodys.unit()
        return response

    return middleware


def inside(get_response: Any) -> Any:
    """Be sync-only nearer the view, which turns ours sync under ASGI."""

    def middleware(request: Any) -> Any:
        job_of(request).unit()
        response = get_response(request)
        job_of(request).unit()
        return response

    return middleware


class Either:
    """Be sync or async, as ours."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        if self.is_async:
            return self.later(request)
        job_of(request).unit()
        response = self.get_response(request)
        job_of(request).unit()
        return response

    async def later(self, request: Any) -> Any:
        job_of(request).unit()
        response = await self.get_response(request)
        job_of(request).unit()
        return response


def handlers(kind: Any) -> dict[str, Any]:
    """Return a handler for each chain."""
    django.setup()
    found = {}
    for name, chain in CHAINS.items():
        with override_settings(MIDDLEWARE=chain):
            found[name] = kind()
    return found


class Wsgi:
    """Pass each request to the chain that its path begins with."""

    def __init__(self) -> None:
        self._handlers = handlers(WSGIHandler)

    def __call__(self, environ: Any, start_response: Any) -> Any:
        _, chain, rest = environ["PATH_INFO"].split("/", 2)
        environ |= {"SCRIPT_NAME": f"/{chain}", "PATH_INFO": f"/{rest}"}
        return self._handlers[chain](environ, start_response)


class Asgi:
    """Do the same under ASGI."""

    def __init__(self) -> None:
        self._handlers = handlers(ASGIHandler)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(f"serve {scope['type']}: Django knows http only")
        chain = scope["path"].split("/", 2)[1]
        await self._handlers[chain]({**scope, "root_path": f"/{chain}"}, receive, send)
