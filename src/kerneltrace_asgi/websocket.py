"""One WebSocket connection: totals for all of it, and the work of each message apart."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from kerneltrace_asgi.protocol import Message, Receive, Scope, Send
from kerneltrace_asgi.route import route_of
from kerneltrace_core.requests import KernelStats

if TYPE_CHECKING:
    from kerneltrace_core.exporters.report import RequestReport

__all__ = ["Connection"]

SWITCHING, FORBIDDEN = 101, 403
BEGINNINGS = ("websocket.connect", "websocket.receive")


class Connection:
    """Watch a connection's messages pass.

    A message's work is what was charged to the connection from when the application got it to
    when it asks for the next: the difference of two snapshots. An application that hands its
    messages to other tasks has that work in the totals and in whichever message it overlaps.
    """

    def __init__(
        self, scope: Scope, stats: KernelStats, report: RequestReport, receive: Receive, send: Send
    ) -> None:
        self._scope = scope
        self._stats = stats
        self._report = report
        self._receive = receive
        self._send = send
        # Without anyone to tell, no snapshot is worth its copy.
        self._apart = report.hook is not None or bool(report.slow_ns or report.loop_block_ns)
        self._begun: bytes | None = None
        self._held_ns = 0
        self._messages = 0
        self._status_code: int | None = None
        self._close_code: int | None = None

    async def receive(self) -> Message:
        """Receive for the application; its next message begins when this returns one."""
        self._end_message()
        message = await self._receive()
        kind = message["type"]
        if kind == "websocket.disconnect":
            self._close_code = message.get("code")
        self._messages += kind == "websocket.receive"
        if self._apart and kind in BEGINNINGS and self._stats.record is not None:
            self._begun = self._stats.record.snapshot()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Send for the application, keeping how the connection began and ended."""
        kind = message["type"]
        if kind == "websocket.accept":
            self._status_code = SWITCHING
        elif kind == "websocket.http.response.start":
            self._status_code = message["status"]
        elif kind == "websocket.close":
            self._close_code = message.get("code", 1000)
            self._status_code = self._status_code or FORBIDDEN
        return self._send(message)

    def finish(self) -> None:
        """End the last message; to be called before the record is closed."""
        self._end_message()

    def report(self, error_type: str | None) -> None:
        """Report the connection; to be called after the record was closed."""
        if not self._report.wanted():
            return
        held_ns = self._stats.loop_block_max_ns or 0
        self._report(
            self._scope,
            self._stats,
            self._about(error_type),
            # A connection is long by nature: slow is said of its messages.
            logged=self._report.slow_ns is None,
            held_loop=held_ns > self._held_ns,
        )

    def _end_message(self) -> None:
        begun, self._begun = self._begun, None
        record = self._stats.record
        if begun is None or record is None:
            return
        stats = KernelStats.between(begun, record.snapshot(), like=self._stats, phase="message")
        # The ledger knows one maximum, the connection's: it is this message's if it grew.
        held_ns = stats.loop_block_max_ns or 0
        grew, self._held_ns = held_ns > self._held_ns, max(held_ns, self._held_ns)
        self._report(
            self._scope,
            stats,
            self._about(None),
            logged=self._report.slow_ns is not None,
            held_loop=grew,
        )

    def _about(self, error_type: str | None) -> dict[str, Any]:
        return {
            "method": "WEBSOCKET",
            "path": self._scope["path"],
            "route": route_of(self._scope),
            "status_code": self._status_code,
            "error_type": error_type,
            "messages": self._messages,
            "close_code": self._close_code,
        }
