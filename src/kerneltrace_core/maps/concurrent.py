"""Entries for ``async for``: read in small chunks, with other tasks in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["AsyncItems"]

K = TypeVar("K")
V = TypeVar("V")


class AsyncItems(Generic[K, V]):
    """Iterate once, by one task. No generator: nothing is to be closed when it is left."""

    def __init__(self, chunks: Iterator[list[tuple[K, V]]]) -> None:
        self._chunks = chunks
        self._ready: deque[tuple[K, V]] = deque()

    def __aiter__(self) -> AsyncItems[K, V]:
        return self

    async def __anext__(self) -> tuple[K, V]:
        while not self._ready:
            # Before it is read: what is cancelled here is not lost.
            await _checkpoint()
            chunk = next(self._chunks, None)
            if chunk is None:
                raise StopAsyncIteration
            self._ready.extend(chunk)
        return self._ready.popleft()


async def _checkpoint() -> None:
    """Let other tasks run."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        import trio  # which else could drive this coroutine

        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)
