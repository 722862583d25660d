"""The rings of a session by name, and the streams that read them."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from kerneltrace_core.btf.layout import MapLayout, ObjectLayout
from kerneltrace_core.errors import OptionError
from kerneltrace_core.events.binding import BoundEvent, bind
from kerneltrace_core.events.engine import Selector
from kerneltrace_core.session.hub import Hub
from kerneltrace_core.session.options import OVERFLOWS, SessionOptions
from kerneltrace_core.session.streams import BatchStream, EventStream, RawStream, aprocess, process

if TYPE_CHECKING:
    from kerneltrace_core.ring.protocol import ReaderProtocol
    from kerneltrace_core.session.consumer import Consumer

__all__ = ["Rings", "is_ring"]

RINGBUF, PERF_EVENT_ARRAY = 27, 4  # enum bpf_map_type, include/uapi/linux/bpf.h


def is_ring(layout: MapLayout) -> bool:
    """Tell whether a map is one that records are read from."""
    return layout.type in (RINGBUF, PERF_EVENT_ARRAY)


class Rings(Mapping[str, Hub]):
    """A hub for each ring, from the beginning: what comes before the first reader stays in it."""

    def __init__(
        self,
        name: str,
        options: SessionOptions,
        layout: ObjectLayout,
        open_reader: Callable[[MapLayout], ReaderProtocol],
    ) -> None:
        self._name = name
        self._options = options
        self._layout = layout
        self._hubs: dict[str, Hub] = {}
        with ExitStack() as undo:
            for each in layout.maps.values():
                if is_ring(each):
                    self._hubs[each.name] = self._open(open_reader(each))
                    undo.callback(self._hubs[each.name].close)
            undo.pop_all()

    def _open(self, reader: ReaderProtocol) -> Hub:
        options = self._options
        return Hub(
            reader,
            session=self._name,
            pump=options.pump,
            spin_us=options.spin_us,
            known=_tags(self._layout),
        )

    def __getitem__(self, name: str) -> Hub:
        return self._hubs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hubs)

    def __len__(self) -> int:
        return len(self._hubs)

    # ---- streams ------------------------------------------------------------------------

    def events(
        self,
        kind: Any,
        *,
        ring: str | None = None,
        timeout: float | None = None,
        where: Any = None,
        overflow: str | None = None,
        queue_size: int | None = None,
    ) -> EventStream[Any]:
        """Return a stream of typed events; see Session.events."""
        bound, consumer = self._typed(kind, ring, where, overflow, queue_size)
        return EventStream(consumer, bound.cls, bound.selector, _seconds(timeout))

    def batches(
        self,
        kind: Any,
        *,
        ring: str | None = None,
        timeout: float | None = None,
        where: Any = None,
        overflow: str | None = None,
        queue_size: int | None = None,
        size: int | None = None,
    ) -> BatchStream[Any]:
        """Return a stream of columns; see Session.batches."""
        most: Any = size
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise OptionError(f"read batches: size {size!r} is not events, 1 or more, or None")
        bound, consumer = self._typed(kind, ring, where, overflow, queue_size)
        return BatchStream(consumer, bound.layout, _seconds(timeout), size)

    def raw(
        self,
        *,
        ring: str | None = None,
        timeout: float | None = None,
        overflow: str | None = None,
        queue_size: int | None = None,
    ) -> RawStream:
        """Return a stream of records as bytes; see Session.raw."""
        hub = self._hub(ring)
        return RawStream(self._subscribe(hub, None, None, overflow, queue_size), _seconds(timeout))

    def process(self, callback: Callable[[Any], Any], kind: Any, **how: Any) -> int:
        """Call a function with each event; see Session.process."""
        with self.events(kind, **how) as stream:
            return process(stream, callback)

    async def aprocess(
        self, callback: Callable[[Any], Awaitable[Any] | Any], kind: Any, **how: Any
    ) -> int:
        """Call a function with each event, on an event loop; see Session.aprocess."""
        async with self.events(kind, **how) as stream:
            return await aprocess(stream, callback)

    def _typed(
        self, kind: Any, ring: str | None, where: Any, overflow: str | None, queue_size: int | None
    ) -> tuple[BoundEvent[Any], Consumer]:
        hub = self._hub(ring)
        perf = self._layout.maps[hub.name].type == PERF_EVENT_ARRAY
        bound = bind(kind, self._layout, where=where, perf=perf)
        return bound, self._subscribe(hub, bound.selector, bound.keep, overflow, queue_size)

    def _subscribe(
        self,
        hub: Hub,
        selector: Selector | None,
        keep: Any,
        overflow: str | None,
        queue_size: int | None,
    ) -> Consumer:
        chosen = self._options.overflow if overflow is None else overflow
        if chosen not in OVERFLOWS:
            raise OptionError(
                f"read ring {hub.name}: overflow {chosen!r} is not one of {', '.join(OVERFLOWS)}"
            )
        capacity: Any = self._options.queue_size if queue_size is None else queue_size
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise OptionError(f"read ring {hub.name}: queue_size {capacity!r} is no number from 1")
        return hub.subscribe(selector, capacity=capacity, overflow=chosen, only=keep)

    def _hub(self, ring: str | None) -> Hub:
        if ring is None and len(self._hubs) == 1:
            return next(iter(self._hubs.values()))
        if ring in self._hubs:
            return self._hubs[ring]
        known = ", ".join(self._hubs) if self._hubs else "none"
        if ring is None:
            raise OptionError(
                f"read a ring of session {self._name}: "
                + (f"it has several (say which: ring=, of {known})" if self else "it has none")
            )
        near = difflib.get_close_matches(str(ring), self._hubs, 1)
        hint = f"did you mean {near[0]}?" if near else f"it has {known}"
        raise OptionError(f"read ring {ring} of session {self._name}: no such ring ({hint})")

    # ---- end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Wake every reader and close every ring; may be repeated."""
        with ExitStack() as end:  # all of them, also if one is interrupted
            for hub in self._hubs.values():
                end.callback(hub.close)

    def abandon(self) -> None:
        """In a forked child: give up its copies."""
        with ExitStack() as end:
            for hub in self._hubs.values():
                end.callback(hub.abandon)


def _seconds(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise OptionError(f"iterate: timeout {timeout!r} is not seconds, 0 or more, or None")
    try:
        return float(timeout)
    except OverflowError:
        return None


def _tags(layout: ObjectLayout) -> Selector | None:
    """Return what selects every type that the object tags; None where it tags none."""
    tags = {(each.offset, each.size) for each in layout.events.values()}
    if len(tags) != 1:
        return None
    [(offset, size)] = tags
    numbers = tuple(each.tag for each in layout.events.values())
    return Selector(offset + size, False, offset, size, numbers)
