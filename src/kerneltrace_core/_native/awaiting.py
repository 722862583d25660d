"""What the step engine leaves to Python: awaiting something that is no coroutine."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

__all__ = ["await_and_mark"]


async def await_and_mark(sending: Awaitable[Any], reading: Any) -> Any:
    """Await what sends the last message, then freeze the reading."""
    result = await sending
    reading.mark()
    return result
