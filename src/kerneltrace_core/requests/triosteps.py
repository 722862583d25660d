"""Tasks of trio: an instrument that has each step of a request's tasks charged to the request."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from kerneltrace_core.requests.context import current
from kerneltrace_core.requests.engine import pop, push

if TYPE_CHECKING:
    from kerneltrace_core.requests.pystep import Record

__all__ = ["TrioTasks"]


class _Steps:
    """Duck-typed trio.abc.Instrument: trio calls what is there."""

    __slots__ = ("_before", "_records")

    def __init__(self) -> None:
        self._before: Record | None = None
        self._records: dict[Any, Record] = {}

    def task_spawned(self, task: Any) -> None:
        # What is current in the task later may be a request that it makes in process: when that
        # ends in mid-step, the thread has to work for this one again.
        record = task.context.get(current)
        if record is not None and record.value:
            self._records[task] = record

    def task_exited(self, task: Any) -> None:
        self._records.pop(task, None)

    def before_task_step(self, task: Any) -> None:
        self._before = push(self._records.get(task))

    def after_task_step(self, task: Any) -> None:  # noqa: ARG002 - trio's signature
        pop(self._before)
        self._before = None


class TrioTasks:
    """Our instrument on each trio run that serves requests."""

    def __init__(self) -> None:
        self._runs: weakref.WeakKeyDictionary[Any, _Steps] = weakref.WeakKeyDictionary()

    def adopt(self) -> None:
        """Add the instrument to the running trio loop, once. Does nothing outside trio."""
        import trio

        try:
            run = trio.lowlevel.current_root_task()
        except RuntimeError:
            return
        if run is not None and run not in self._runs:
            self._runs[run] = steps = _Steps()
            trio.lowlevel.add_instrument(steps)  # type: ignore[arg-type]

    def release(self) -> None:
        """Remove the instrument, if this is the run's own thread.

        Another thread's run keeps it: with its records closed it does nothing, and the next
        start finds it again.
        """
        import trio

        for run, steps in list(self._runs.items()):
            try:
                if trio.lowlevel.current_root_task() is run:
                    trio.lowlevel.remove_instrument(steps)  # type: ignore[arg-type]
                    del self._runs[run]
            except (RuntimeError, KeyError):
                continue
