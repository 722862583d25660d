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

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: Record | None = None

    def before_task_step(self, task: Any) -> None:
        record = task.context.get(current)
        self._before = push(record if record is not None and record.value else None)

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
        """Forget the runs; on the trio thread itself, remove the instrument."""
        import trio

        for run, steps in list(self._runs.items()):
            try:
                if trio.lowlevel.current_root_task() is run:
                    trio.lowlevel.remove_instrument(steps)  # type: ignore[arg-type]
            except (RuntimeError, KeyError):
                continue  # another thread's run: its records are closed, the steps do nothing
        self._runs.clear()
