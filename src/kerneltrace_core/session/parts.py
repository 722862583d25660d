"""Everything that an open session owns, and the order of its end."""

from __future__ import annotations

import threading
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kerneltrace_core.errors import ClosedError, OptionError
from kerneltrace_core.session.forking import no_fork_meanwhile
from kerneltrace_core.session.stats import SessionStats, read_stats

if TYPE_CHECKING:
    from kerneltrace_core.bpf.object import BpfObject
    from kerneltrace_core.btf.layout import ObjectLayout
    from kerneltrace_core.maps.maps import Maps
    from kerneltrace_core.session.filters import FilterControl
    from kerneltrace_core.session.info import ProgramInfo
    from kerneltrace_core.session.links import Link
    from kerneltrace_core.session.probe import Probe
    from kerneltrace_core.session.rings import Rings
    from kerneltrace_core.session.tracelog import TraceLog
    from kerneltrace_core.session.variables import Variables

__all__ = ["Parts"]


class Parts:
    """Everything that an open session owns. ``close`` and ``abandon`` may be repeated."""

    def __init__(
        self,
        layout: ObjectLayout,
        opened: BpfObject,
        maps: Maps,
        variables: Variables,
        streams: Rings,
        control: FilterControl | None,
    ) -> None:
        self.layout = layout
        self.object = opened
        self.maps = maps
        self.variables = variables
        self.streams = streams
        self.links: list[Link] = []
        self._control = control
        self._logs: weakref.WeakSet[TraceLog] = weakref.WeakSet()
        self._closed = False
        # Reentrant: a signal handler may close the session in the midst of an attach.
        self._lock = threading.RLock()

    def filter(self) -> FilterControl:
        """Return what changes the filter. Raises OptionError where the object has none."""
        if self._control is None:
            raise OptionError(
                f"filter object {self.object.name}: it was built without filters "
                "(include <kerneltrace/kt_filter.h> and ask kt_wanted() in its programs)"
            )
        return self._control

    def attach(self, probe: Probe) -> Link:
        """Attach one more probe."""
        from kerneltrace_core.session.choosing import choose_program
        from kerneltrace_core.session.links import Link

        with no_fork_meanwhile(), self.object.in_use():
            link = Link(self.object, choose_program(self.object, probe), probe)
            try:
                link.attach()
                with self._lock:
                    if not self._closed:
                        self.links[:] = [each for each in self.links if not each.closed]
                        self.links.append(link)
                        return link
            except BaseException:  # also what a signal handler raises
                link.close()
                raise
            link.close()
        raise ClosedError(f"attach {probe.describe()}: its session was closed meanwhile")

    def stats(self, session: str) -> SessionStats:
        """Return the counts of this moment; ``session`` is the name that they get."""
        return read_stats(self.layout, self.maps, self.streams, session)

    def program_info(self) -> dict[str, ProgramInfo]:
        """Ask for every loaded program, by its name."""
        from kerneltrace_core.session.info import program_info

        return program_info(self.object)

    def trace_log(self, timeout: float | None) -> TraceLog:
        """Open the trace log, which is the machine's, until it or this is closed."""
        with no_fork_meanwhile():
            log = self._open_log(timeout)
            with self._lock:
                if not self._closed:
                    self._logs.add(log)
                    return log
        log.close()
        raise ClosedError("read trace log: its session was closed meanwhile")

    def _open_log(self, timeout: float | None) -> TraceLog:
        from kerneltrace_core.session.tracelog import trace_log

        return trace_log(timeout=timeout)

    def close(self) -> None:
        """Detach first, so that nothing more comes; then end the readers, then free."""
        with self._lock:
            self._closed = True
            links, logs = list(self.links), list(self._logs)
        with ExitStack() as end:
            for log in logs:
                end.callback(log.close)
            end.callback(self.object.close)
            end.callback(self.variables.close)
            end.callback(self.maps.close)
            end.callback(self.streams.close)
            for link in links:
                end.callback(link.close)

    def abandon(self) -> None:
        """In a forked child: give up this process's copies; the parent's session goes on."""
        with ExitStack() as end:
            for log in list(self._logs):
                end.callback(log.abandon)
            end.callback(self.object.abandon)
            end.callback(self.variables.close)
            end.callback(self.maps.abandon)
            end.callback(self.streams.abandon)
            for link in self.links:
                end.callback(link.abandon)
