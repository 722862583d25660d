"""Streamed content is made after the middleware returned: each part of it, for its request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
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
        """End the request; its own closers ran before."""
        self._traced.end()


class AsyncParts:
    """The content of a response, on the event loop that serves it."""

    def __init__(self, parts: AsyncIterator[Any], traced: Traced) -> None:
        self._parts = parts
        self._traced = traced
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending = True

    def __aiter__(self) -> AsyncParts:
        return self

    async def __anext__(self) -> Any:
        if self._loop is None:
            # Under WSGI this is a loop of its own, which nobody has seen before.
            self._loop = asyncio.get_running_loop()
            self._traced.tracer.adopt_loop()
        try:
            return await self._step(self._parts.__anext__())
        except StopAsyncIteration:
            self._pending = False
            self._traced.end()
            raise
        except BaseException as error:
            self._pending = False
            self._traced.end(error)
            raise

    async def _step(self, awaitable: Awaitable[Any]) -> Any:
        record = self._traced.record
        if record is None or not record.value:
            return await awaitable
        token = current.set(record)
        try:
            return await record.step(
                awaitable if hasattr(awaitable, "send") else _coroutine(awaitable)
            )
        finally:
            reset(token)

    def close(self) -> None:
        """End the request; content that was left in the middle is closed on its loop before."""
        aclose = getattr(self._parts, "aclose", None)
        pending, self._pending = self._pending, False
        loop = self._loop
        if pending and loop is not None and aclose is not None and loop.is_running():
            try:
                loop.call_soon_threadsafe(self._close_soon, loop, aclose)
            except RuntimeError:  # the loop was closed meanwhile
                pass
            else:
                return
        self._traced.end()

    def __del__(self) -> None:
        # As for an asynchronous generator that is dropped: its finally runs on the loop.
        if getattr(self, "_pending", False) and self._loop is not None:
            self.close()

    def _close_soon(self, loop: asyncio.AbstractEventLoop, aclose: Any) -> None:
        loop.create_task(self._close(aclose))

    async def _close(self, aclose: Any) -> None:
        try:
            await self._step(aclose())
        finally:
            self._traced.end()


async def _coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
