"""Session: an object loaded, attached, streamed from and closed as one."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from kerneltrace_core.errors import ClosedError, OptionError
from kerneltrace_core.session.forking import no_fork_meanwhile
from kerneltrace_core.session.options import SessionOptions
from kerneltrace_core.session.own_thread import in_own_thread
from kerneltrace_core.session.probe import Probe

if TYPE_CHECKING:
    # Never imported: it need not be there.
    from typing_extensions import Unpack

    from kerneltrace_core.btf.layout import ObjectLayout
    from kerneltrace_core.maps.maps import Maps
    from kerneltrace_core.session.filters import FilterControl
    from kerneltrace_core.session.info import ProgramInfo
    from kerneltrace_core.session.links import Link
    from kerneltrace_core.session.parts import Parts
    from kerneltrace_core.session.stats import SessionStats
    from kerneltrace_core.session.stream_options import BatchOptions, EventOptions, StreamOptions
    from kerneltrace_core.session.streams import BatchStream, EventStream, RawStream
    from kerneltrace_core.session.tracelog import TraceLog
    from kerneltrace_core.session.variables import Variables

__all__ = ["Session"]

Self = TypeVar("Self", bound="Session")
T = TypeVar("T")

_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_watching_forks = False


class Session:
    """Load a BPF object, attach its programs, and read what they say.

    ``with Session("probe.bpf.o", probes="auto") as session:`` (``async with`` likewise: then
    what blocks runs on a thread). Options: see SessionOptions. Opening is all or nothing, takes
    tens of milliseconds, and sets variables and filters before the first program is attached.

    Raises OptionError, LoadError with the verifier's log, AttachError, PrivilegeError,
    UnsupportedError; ClosedError for any use before it is open, after it is closed, and in a
    forked child, whose parent's session goes on. All methods may be called from any thread.
    Least kernel 5.8 (5.5 with a perf buffer for a ring). Needs CAP_BPF and CAP_PERFMON, more
    for some probes: docs/privileges.md.
    """

    def __init__(
        self,
        object: str | Path | bytes,  # noqa: A002 - the kernel's own word for it
        probes: Sequence[Probe] | str = (),
        **options: Any,
    ) -> None:
        self.options = SessionOptions.of(object, probes, options)
        self._parts: Parts | None = None
        self._unfinished: Parts | None = None  # of a close that failed
        self._pid = 0
        self._why_closed = "it has not been opened"
        self._lock = threading.RLock()
        if self.options.name is not None:
            self.name = self.options.name
        else:
            source = self.options.object
            self.name = "object" if isinstance(source, bytes) else Path(source).name.split(".")[0]

    # ---- life -----------------------------------------------------------------------

    def open(self: Self) -> Self:
        """Load and attach; blocks for tens of milliseconds. A second call raises ClosedError."""
        with self._lock:
            if self._parts is not None or self._pid:
                raise ClosedError(f"open session {self.name}: it has been opened before")
            with no_fork_meanwhile():
                self._parts = self._assemble()
                self._pid = os.getpid()
                _remember(self)
        return self

    def _assemble(self) -> Parts:
        # Not at the top: this loads libbpf, and a blueprint needs none.
        from kerneltrace_core.session.assembly import assemble

        return assemble(self.name, self.options)

    def close(self) -> None:
        """Detach, wake every reader, and free; may be repeated, from any thread.

        What a stream had taken from its ring before is still delivered; then it ends. In a
        forked child only the child's copies are given up. If it raises AttachError, of a tc
        filter in another network namespace, all else is closed; called again it tries again.
        """
        with self._lock, no_fork_meanwhile():
            parts = self._parts or self._unfinished
            self._parts = self._unfinished = None
            if parts is None:
                return
            self._why_closed = "it is closed"
            if self._pid != os.getpid():
                parts.abandon()
                return
            try:
                parts.close()
            except BaseException:  # also what a signal handler raises
                self._unfinished = parts
                raise

    async def aclose(self) -> None:
        """Do as ``close``, on another thread."""
        await in_own_thread(f"kerneltrace-{self.name}-close", self.close)

    @property
    def closed(self) -> bool:
        """Whether it is not open: not yet, no more, or not in this process."""
        return self._parts is None or self._pid != os.getpid()

    def __enter__(self: Self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self: Self) -> Self:
        try:
            await in_own_thread(f"kerneltrace-{self.name}-open", self.open)
        except BaseException:
            self.close()  # cancelled, and opened all the same
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # An attribute may be missing if __init__ raised.
        if getattr(self, "_parts", None) is not None and self._pid == os.getpid():
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:  # where warnings are errors, too
                self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<Session {self.name} {state}>"

    def _open(self, act: str) -> Parts:
        parts = self._parts
        if parts is None:
            raise ClosedError(f"{act} of session {self.name}: {self._why_closed}")
        if self._pid != os.getpid():
            raise ClosedError(
                f"{act} of session {self.name}: it is the parent's (pid {self._pid}), and this is "
                "a forked child (open a session of its own here)"
            )
        return parts

    # ---- what it is made of -----------------------------------------------------------

    @property
    def layout(self) -> ObjectLayout:
        """What the object says about itself: its structs, maps, variables and programs."""
        return self._open("read layout").layout

    @property
    def maps(self) -> Maps:
        """The maps by name, each as a mapping."""
        return self._open("use maps").maps

    @property
    def variables(self) -> Variables:
        """The global variables by name."""
        return self._open("use variables").variables

    @property
    def rings(self) -> tuple[str, ...]:
        """The names of the maps that records are read from, by ``ring=`` of the streams."""
        return tuple(self._open("list rings").streams)

    @property
    def filter(self) -> FilterControl:
        """Whom the programs trace; raises OptionError if the object was built without filters."""
        return self._open("use filter").filter()

    # ---- links ------------------------------------------------------------------------

    @property
    def links(self) -> tuple[Link, ...]:
        """The links, in the order in which they were made; those of optional probes too."""
        return tuple(each for each in self._open("list links").links if not each.closed)

    def attach(self, probe: Probe) -> Link:
        """Attach one more probe while events flow; ``link.detach()`` undoes it.

        ``link.close()`` does so for good: the session forgets the link. Blocks for milliseconds,
        a perf uprobe for tens. Raises AttachError, PrivilegeError, UnsupportedError, OptionError.
        """
        parts = self._open(f"attach {probe}")
        if not isinstance(probe, Probe):
            raise OptionError(f"attach {probe!r}: it is no probe (Tracepoint(...), Kprobe(...)...)")
        return parts.attach(probe)

    # ---- streams ----------------------------------------------------------------------

    @overload
    def events(self, kind: type[T], **how: Unpack[EventOptions]) -> EventStream[T]: ...
    @overload
    def events(self, kind: str, **how: Unpack[EventOptions]) -> EventStream[Any]: ...
    def events(self, kind: type[Any] | str, **how: Unpack[EventOptions]) -> EventStream[Any]:
        """Iterate over the events of one type, by ``for`` or ``async for``.

        ``kind``: a class declared with ``kernel_event``, or the name of a C struct of the object.
        ``ring``: the map, where the object has several. ``timeout``: seconds without an event
        after which the iteration ends, None to wait. ``where``: ("field", value or values) or a
        function of the record's bytes, to tell types apart on a ring without our header.
        ``overflow`` and ``queue_size`` as in SessionOptions. The stream holds what comes from now
        on; several streams each get every event. Close it, or use it in ``with``, to stop early.
        """
        return self._open("read events").streams.events(kind, **how)

    def raw(self, **how: Unpack[StreamOptions]) -> RawStream:
        """Iterate over the records of a ring as bytes, whatever they are."""
        return self._open("read records").streams.raw(**how)

    def batches(self, kind: type[Any] | str, **how: Unpack[BatchOptions]) -> BatchStream[Any]:
        """Iterate over whole batches of events of one type, as columns; for throughput."""
        return self._open("read batches").streams.batches(kind, **how)

    def process(
        self, callback: Callable[[T], Any], kind: type[T] | str, **how: Unpack[EventOptions]
    ) -> int:
        """Call a function with each event until the session is closed or it returns False.

        Returns how many events it was called with. Blocks; ``aprocess`` is for coroutines.
        """
        return self._open("process events").streams.process(callback, kind, **how)

    async def aprocess(
        self,
        callback: Callable[[T], Awaitable[Any] | Any],
        kind: type[T] | str,
        **how: Unpack[EventOptions],
    ) -> int:
        """Do as ``process`` on an event loop; the callback may be a coroutine function."""
        return await self._open("process events").streams.aprocess(callback, kind, **how)

    # ---- how it goes ------------------------------------------------------------------

    def stats(self) -> SessionStats:
        """Return what was seen, submitted, delivered and lost and why, by program and ring."""
        return self._open("read stats").stats(self.name)

    def wall_clock(self, time_ns: int) -> datetime:
        """Return the UTC time of a kernel timestamp (CLOCK_MONOTONIC, bpf_ktime_get_ns()).

        By the clocks of this moment: if the wall clock was set in between, by today's.
        """
        ago_ns = time.monotonic_ns() - time_ns
        return datetime.now(timezone.utc) - timedelta(microseconds=ago_ns / 1000)

    def program_info(self) -> Mapping[str, ProgramInfo]:
        """Return id, tag, run time and memory of each loaded program, by its name.

        Runs are counted inside ``bpf_stats()``. Of a map, ``session.maps[name].info`` tells.
        """
        return MappingProxyType(self._open("read program info").program_info())

    def trace_log(self, *, timeout: float | None = None) -> TraceLog:
        """Iterate over the lines that ``bpf_printk`` writes, by ``for`` or ``async for``.

        The log is the machine's: it has the lines of all programs. ``timeout``: seconds without a
        line after which the iteration ends, None to wait; it ends with the session, too. Needs a
        readable tracefs; raises UnsupportedError or PrivilegeError where there is none.
        """
        return self._open("read trace log").trace_log(timeout)


def _remember(session: Session) -> None:
    global _watching_forks
    _open_sessions.add(session)
    if not _watching_forks:
        _watching_forks = True
        os.register_at_fork(after_in_child=_abandon)


def _abandon() -> None:
    """In a forked child: give up its descriptors, or programs would outlive the parent."""
    for session in list(_open_sessions):
        session._lock = threading.RLock()
        parts, session._parts = session._parts, None
        if parts is not None:
            session._why_closed = (
                f"it is the parent's (pid {session._pid}), and this is a forked child "
                "(open a session of its own here)"
            )
            parts.abandon()
