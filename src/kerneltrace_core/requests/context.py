"""Which request is current: in this context, and on this thread."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from kerneltrace_core.requests import engine

if TYPE_CHECKING:
    from kerneltrace_core.requests.pystep import Record

__all__ = ["current", "request_here"]

# A mutable record, set and reset by the integration. Keep-alive connections carry stale ones into
# the next request, so it never decides whether a request is nested, and a closed record (value 0)
# counts as none.
current: ContextVar[Record | None] = ContextVar("kerneltrace_record", default=None)


def request_here() -> Record | None:
    """Return the open record that work started here belongs to, None if there is none.

    First the owner of this thread: worker threads have no context of their own. Then the context:
    a callback of the event loop belongs to nobody, but knows who scheduled it.
    """
    record = engine.current()
    if record is None or not record.value:
        record = current.get()
    return record if record is not None and record.value else None
