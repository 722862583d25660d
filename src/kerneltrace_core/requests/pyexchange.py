"""An exchange of the twin's: the ``send`` that an ASGI application gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from kerneltrace_core._native.awaiting import await_and_mark
from kerneltrace_core.requests.pyreading import Reading

__all__ = ["Exchange"]

# What may carry the end of a response; the other two are extensions for sending files.
BODIES = frozenset(("http.response.body", "http.response.pathsend", "http.response.zerocopysend"))


class Exchange:
    """The send of one request: how its response begins and ends.

    ``on_start(message)`` returns the message to send in place of the one that begins the response.
    """

    __slots__ = ("_on_start", "_reading", "_send", "_status_code")

    def __init__(
        self,
        reading: Reading,
        send: Callable[[Any], Awaitable[None]],
        on_start: Callable[[Any], Any] | None,
        /,
    ) -> None:
        if not isinstance(reading, Reading):
            raise TypeError(f"make exchange: {reading!r} is not a Reading")
        self._reading = reading
        self._send = send
        self._on_start = on_start
        self._status_code: Any = None

    @property
    def status_code(self) -> Any:
        """The response's; None before it begins."""
        return self._status_code

    # Not async: no coroutine more for each message than the server's own.
    def send(self, message: Any, /) -> Awaitable[None]:
        """Send a message; the last one freezes the reading."""
        kind = message["type"]
        if kind == "http.response.start":
            self._status_code = message["status"]
            if self._on_start is not None:
                message = self._on_start(message)
        elif kind in BODIES and not message.get("more_body"):
            return await_and_mark(self._send(message), self._reading)
        return self._send(message)
