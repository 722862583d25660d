"""Child tasks: a task factory that has each step of a request's tasks charged to the request."""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from kerneltrace_core.requests.context import current
from kerneltrace_core.requests.engine import Step

__all__ = ["LoopTasks"]

Factory = Callable[..., Any]
MARK = "kerneltrace_chained"
# 3.12+. Its functions are recognised by their code object, by anyio for one.
EAGER = getattr(asyncio, "eager_task_factory", None)


# Until 3.11 get_running_loop() asks the kernel for the pid each time, and a traced system call
# costs more than all the rest of what a request pays here. The loop that ran on this thread last
# and is running is this thread's: a loop that moves to another thread while this one runs a
# second loop is not known to exist.
ASKS_FOR_PID = sys.version_info < (3, 12)
_get_running_loop = asyncio.get_running_loop


class _Here(threading.local):
    loop: asyncio.AbstractEventLoop | None = None


_here = _Here()


def _wrap(coroutine: Any, context: Any) -> Any:
    record = current.get() if context is None else context.get(current)
    if record is None or not record.value or isinstance(coroutine, Step):
        return coroutine
    return record.step(coroutine)


def _chain_plain(make: Factory) -> Factory:
    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        # Called as (loop, coro), (loop, coro, context=) or with more: passed on as they came.
        return make(loop, _wrap(coroutine, options.get("context")), **options)

    return factory


def _made_anew() -> Factory:
    """Return a factory for a loop that has none; nearly all have none, so it calls nobody else."""
    get, make = current.get, asyncio.Task

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        # _wrap(), written out. Some loops name the context in each call, as None.
        context = options.get("context")
        record = get() if context is None else context.get(current)
        if record is not None and record.value and not isinstance(coroutine, Step):
            coroutine = record.step(coroutine)
        return make(coroutine, loop=loop, **options)

    return factory


def _chain_eager(user: Factory) -> Factory:
    """Make an eager factory around the user's, with the code object that marks one.

    anyio looks for that code object and then reads the constructor from its closure; a plain
    function around it would make anyio's own tasks start before it has noted them.
    """
    closure: Any = user.__closure__
    make = closure[0].cell_contents

    def constructor(coroutine: Any, **options: Any) -> Any:
        return make(_wrap(coroutine, options.get("context")), **options)

    factory: Factory = asyncio.create_eager_task_factory(constructor)  # type: ignore[attr-defined]
    return factory


def chain(user: Factory | None) -> Factory:
    """Return a factory that does what ``user`` does, for a step instead of the coroutine."""
    eager = EAGER is not None and getattr(user, "__code__", None) is EAGER.__code__
    if user is None:
        factory: Factory = _made_anew()
    elif eager:
        factory = _chain_eager(user)
    else:
        factory = _chain_plain(user)
    setattr(factory, MARK, (user,))
    return factory


class LoopTasks:
    """Our task factory on each event loop that serves requests.

    ``adopt_running`` is called at every request, on the loop's thread: a user may set a factory at
    any time, and the next request chains to it. ``elsewhere`` is called for a request that no loop
    of asyncio's serves. ``release`` gives every loop its own factory back.
    """

    def __init__(self, elsewhere: Callable[[], None]) -> None:
        self._elsewhere = elsewhere
        # Until there is one, something that no loop has: None means a loop's own way.
        self._last: object = self
        self._loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

    def adopt_running(self) -> None:
        """Adopt the loop that runs on this thread; costs about 0.1 us when nothing changed."""
        try:
            if ASKS_FOR_PID:
                loop = _here.loop
                if loop is None or not loop.is_running():
                    loop = _here.loop = _get_running_loop()
            else:
                loop = _get_running_loop()
        except RuntimeError:
            self._elsewhere()
            return
        if loop.get_task_factory() is not self._last:
            self.adopt(loop)

    def adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        """Chain our factory to the loop's, if it is not there."""
        factory = loop.get_task_factory()
        if hasattr(factory, MARK):
            return
        made = self._last = chain(factory)
        loop.set_task_factory(made)
        self._loops.add(loop)

    def release(self) -> None:
        """Restore the user's factory wherever ours is still the loop's."""
        for loop in list(self._loops):
            chained = getattr(loop.get_task_factory(), MARK, None)
            if chained is not None:
                loop.set_task_factory(chained[0])
        self._loops.clear()
        self._last = self
