"""KernelTraceMiddleware: gives every request of a Django project its KernelStats."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from kerneltrace_core.exporters.server_timing import server_timing
from kerneltrace_core.requests import current, request_here
from kerneltrace_core.requests.engine import pop, push
from kerneltrace_django import settings
from kerneltrace_django.current import RequestStats
from kerneltrace_django.route import route_of
from kerneltrace_django.streaming import follow
from kerneltrace_django.traced import Traced
from kerneltrace_django.tracing import Tracing, tracing

__all__ = ["KernelTraceMiddleware"]

OFF = RequestStats.off()
KEY = "kerneltrace"
HEADER = "Server-Timing"


class KernelTraceMiddleware:
    """Trace what the kernel does for each request, under WSGI and ASGI.

    In a view ``request.kerneltrace`` is the request's live KernelStats. At its end, which for
    streamed content is the end of that, it is sent by the signal ``kernel_request_finished``,
    logged on ``kerneltrace.request``, given to ``ON_REQUEST`` and, when asked, sent as
    ``Server-Timing``. Put it first, but inside OpenTelemetry's.

    Tracing starts with the first request of a process, which is served untraced like all that
    come before it is ready; with ``REQUIRED`` they wait, and ImproperlyConfigured is raised when
    it cannot be started. Sync and async alike, without a thread of its own.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self._plan: Tracing | None = None
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        """Serve one request."""
        if self._is_async:
            return self.__acall__(request)
        # Every request runs through this, and calling is what costs: so little is called.
        if getattr(request, KEY, None) is not None or (
            getattr(request, "scope", None) is not None and _was_served(request)
        ):
            return self._inside(request, self.get_response(request))
        plan = self._plan
        if plan is None or plan.options is not settings.in_force:
            plan = self._plan = tracing()
        tracer = plan.found
        if tracer is None or not tracer.ready:
            tracer = plan.tracer()
        if tracer is None or (plan.skip is not None and plan.skip(request)):
            traced = self._pass_over(plan, tracer, request, loop=False)
            if traced is None:
                return self.get_response(request)
        else:
            traced = Traced(plan, tracer, type(self), request, loop=False)
            request.kerneltrace = traced.stats
        record = traced.record
        if record is None:
            return self.get_response(request)
        try:
            token = current.set(record)
            previous = push(record)
            try:
                response = self.get_response(request)
            finally:
                pop(previous)
                try:
                    current.reset(token)
                except ValueError:  # another context: somebody resumes us elsewhere
                    current.set(None)
        except BaseException as error:
            traced.end(error)
            raise
        return self._answer(plan, traced, response)

    async def __acall__(self, request: Any) -> Any:
        """Serve one request on an event loop."""
        if getattr(request, KEY, None) is not None or (
            getattr(request, "scope", None) is not None and _was_served(request)
        ):
            return self._inside(request, await self.get_response(request))
        plan = self._plan
        if plan is None or plan.options is not settings.in_force:
            plan = self._plan = tracing()
        tracer = plan.found
        if tracer is None or not tracer.ready:
            tracer = await plan.tracer_on_loop()
        if tracer is None or (plan.skip is not None and plan.skip(request)):
            traced = self._pass_over(plan, tracer, request, loop=True)
            if traced is None:
                return await self.get_response(request)
        else:
            traced = Traced(plan, tracer, type(self), request, loop=True)
            request.kerneltrace = traced.stats
        record = traced.record
        if record is None:
            return await self.get_response(request)
        traced.tracer.adopt_loop()
        try:
            token = current.set(record)
            try:
                serving = self.get_response(request)
                if not hasattr(serving, "send"):
                    serving = _coroutine(serving)
                response = await record.step(serving)
            finally:
                try:
                    current.reset(token)
                except ValueError:
                    current.set(None)
        except BaseException as error:
            traced.end(error)
            raise
        return self._answer(plan, traced, response)

    def process_exception(self, request: Any, exception: Exception) -> None:
        """Note what a view raised: Django makes a response of it before we see it."""
        request._kerneltrace_error = type(exception).__name__

    def _pass_over(self, plan: Tracing, tracer: Any, request: Any, *, loop: bool) -> Traced | None:
        # Inside another request (a test client, a call in process) even one that is passed over
        # has a record, which is reported to nobody: else its work would be the other's.
        request.kerneltrace = OFF
        if tracer is None or request_here() is None:
            return None
        return Traced(plan, tracer, type(self), request, loop=loop, told=False)

    def _answer(self, plan: Tracing, traced: Traced, response: Any) -> Any:
        request, followed = traced.request, False
        try:
            traced.status_code = response.status_code
            if response.status_code >= 500:
                traced.error_type = getattr(request, "_kerneltrace_error", None)
            if plan.timing is not None and plan.timing(request):
                _add_server_timing(response, traced.stats)
            followed = response.streaming and follow(response, traced)
        finally:
            if not followed:
                traced.end()
        return response

    def _inside(self, request: Any, response: Any) -> Any:
        scope = getattr(request, "scope", None)
        if scope is not None and KEY in scope and request.resolver_match is not None:
            # Who ends the request outside has no other way to learn its route.
            scope.setdefault("path_template", route_of(request))
        return response


def _was_served(request: Any) -> bool:
    """Tell whether a middleware of ours outside of Django serves this very request already."""
    stats = request.scope.get(KEY)
    if stats is None:
        return False
    request.kerneltrace = stats
    return True


def _add_server_timing(response: Any, stats: RequestStats) -> None:
    value = server_timing(stats)
    if value is not None:
        before = response.get(HEADER)
        response[HEADER] = f"{before}, {value}" if before else value


async def _coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
