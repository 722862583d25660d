"""Streamed content is made after the middleware returned: each part of it, for its request."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any

from kerneltrace_core.requests import current
from kerneltrace_django.traced import Traced, reset

__all__ = ["follow"]


def follow(response: Any, traced: Traced) -> bool:
    """Have the content of a streaming response charged, and the request ended with it.

    Returns False where that is not possible: then the request ends now.

    The iterator is exchanged in its place: the public setter would take ``file_to_stream`` from a
    FileResponse, and with it the server's sendfile. What the view left to be closed is closed by
    Django as ever, but for the request; a response that is never iterated is closed all the same.
    """
    closers = getattr(response, "_resource_closers", None)
    if closers is None or not hasattr(response, "_iterator"):
        return False
    closers[:] = [partial(traced.run, closer) for closer in closers]
    parts: Parts | AsyncParts
    if getattr(response, "is_async", False):
        parts = AsyncParts(response._iterator, traced)
    else:
        parts = Parts(response._iterator, traced)
    response._iterator = parts
    closers.append(parts.close)
    return True


class Parts:
    """The content of a response, on whichever threads the server pulls it."""

    def __init__(self, parts: Iterator[Any], traced: Traced) -> None:
        self._parts = parts
        self._traced = traced

    def __iter__(self) -> Parts:
        return self

    def __next__(self) -> Any:
        try:
            return self._traced.run(next, self._parts)
        except StopIteration:
            self._traced.end()
            raise
        except BaseException as error:
            self._traced.end(error)
            raise

    def close(self) -> None:
        """End the request; what the view left to be closed was closed before."""
        self._traced.end()

    # Dropped and not closed: by a server that was cancelled.
    __del__ = close


class AsyncParts:
    """The content of a response, on the event loop that serves it."""

    def __init__(self, parts: AsyncIterator[Any], traced: Traced) -> None:
        self._parts = parts
        self._traced = traced
        self._cleanup: Cleanup | None = None

    def __aiter__(self) -> AsyncParts:
        return self

    async def __anext__(self) -> Any:
        try:
            part = self._begin() if self._cleanup is None else self._parts.__anext__()
            return await step(self._traced, part)
        except StopAsyncIteration:
            self._traced.end()
            raise
        except BaseException as error:
            self._traced.end(error)
            raise

    def _begin(self) -> Awaitable[Any]:
        # Under WSGI the loop is one of its own, which nobody has seen before.
        self._traced.tracer.adopt_loop()
        self._cleanup = Cleanup(self._traced)
        hooks = sys.get_asyncgen_hooks()
        # A generator takes the finalizer of its first step. The loop's would run its finally as
        # whichever request happens to be current when it is dropped.
        sys.set_asyncgen_hooks(finalizer=self._cleanup)
        try:
            return self._parts.__anext__()
        finally:
            sys.set_asyncgen_hooks(*hooks)

    def close(self) -> None:
        """End the request; content that was left in the middle is closed on its loop before."""
        if self._cleanup is None:
            self._traced.end()
        else:
            self._cleanup(self._parts)

    __del__ = close


class Cleanup:
    """Close asynchronous content that was left in the middle, on its loop and for its request.

    Knows nothing of the content itself, which knows this: else only the collector of garbage
    would ever free it. May be called on any thread, and more than once.
    """

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._begun = False

    def __call__(self, parts: Any) -> None:
        """Begin to close ``parts``; the request ends with that."""
        aclose = getattr(parts, "aclose", None)
        if self._traced.ended or self._begun or aclose is None or not self._loop.is_running():
            if not self._begun:
                self._traced.end()
            return
        self._begun = True
        try:
            self._loop.call_soon_threadsafe(self._start, aclose, context=self._context)
        except RuntimeError:  # the loop was closed meanwhile
            self._traced.end()

    def _start(self, aclose: Callable[[], Any]) -> None:
        self._task = self._loop.create_task(self._close(aclose))

    async def _close(self, aclose: Callable[[], Any]) -> None:
        try:
            await step(self._traced, aclose())
        except RuntimeError:
            pass  # a generator that somebody else closes already
        finally:
            self._traced.end()


async def step(traced: Traced, awaitable: Awaitable[Any]) -> Any:
    """Await as the request, whichever loop and thread this is."""
    record = traced.record
    if record is None or not record.value:
        return await awaitable
    token = current.set(record)
    try:
        return await record.step(awaitable if hasattr(awaitable, "send") else _coroutine(awaitable))
    finally:
        reset(token)


async def _coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
