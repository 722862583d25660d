"""Work that a request gives to threads: wrapped where it is handed over, and undone on stop."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import thread as pool_threads
from typing import TYPE_CHECKING, Any

from kerneltrace_core.requests.context import request_here
from kerneltrace_core.requests.engine import current, pop, push
from kerneltrace_core.requests.imports import ImportWatch

if TYPE_CHECKING:
    from kerneltrace_core.requests.pystep import Record

__all__ = ["Handover"]

MARK = "__kerneltrace_wrapped__"
# Libraries whose choke points are wrapped when, and if, they are imported.
WATCHED = (
    "anyio._backends._asyncio",
    "asgiref.current_thread_executor",
    "asgiref.sync",
    "trio._core._thread_cache",
)
# A pool's thread serves many requests: it must not inherit the one that made the pool grow.
POOL_THREAD_MODULES = frozenset(("anyio._backends._asyncio", "trio._core._thread_cache"))


def run_as(
    record: Record, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call a function with this thread working for the record."""
    previous = current()  # not push's answer: a signal may raise before the try begins
    try:
        push(record)
        return function(*args, **kwargs)
    finally:
        pop(previous)


def _executor_submit(submit: Callable[..., Any]) -> Callable[..., Any]:
    def submit_for_request(self: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        record = request_here()
        if record is None:
            return submit(self, function, *args, **kwargs)
        return submit(self, run_as, record, function, args, kwargs)

    return submit_for_request


def _is_pool_thread(thread: threading.Thread) -> bool:
    target = getattr(thread, "_target", None)
    if target is pool_threads._worker:
        return True
    owner = getattr(target, "__self__", None)
    modules = {type(thread).__module__, type(owner).__module__}
    return bool(modules & POOL_THREAD_MODULES) or (
        getattr(target, "__module__", None) == "multiprocessing.pool"
    )


def _thread_start(start: Callable[..., Any]) -> Callable[..., Any]:
    def start_for_request(self: threading.Thread) -> Any:
        record = request_here()
        if record is None or _is_pool_thread(self):
            return start(self)
        run = self.run

        def run_for_request() -> None:
            # The instance's attribute goes first: it holds the thread in a cycle.
            del self.run
            run_as(record, run, (), {})

        self.run = run_for_request  # type: ignore[method-assign]
        try:
            return start(self)
        except BaseException:
            self.__dict__.pop("run", None)
            raise

    return start_for_request


def _run_sync_in_worker_thread(run_sync: Callable[..., Any]) -> Callable[..., Any]:
    def run_for_request(cls: Any, function: Any, args: Any, *rest: Any, **kwargs: Any) -> Any:
        record = request_here()
        if record is None:
            return run_sync(cls, function, args, *rest, **kwargs)
        return run_sync(cls, run_as, (record, function, args, {}), *rest, **kwargs)

    return run_for_request


def _start_thread_soon(start: Callable[..., Any]) -> Callable[..., Any]:
    def start_for_request(self: Any, function: Any, *rest: Any, **kwargs: Any) -> Any:
        record = request_here()
        if record is None:
            return start(self, function, *rest, **kwargs)
        return start(self, lambda: run_as(record, function, (), {}), *rest, **kwargs)

    return start_for_request


def _main_wrap(adopt: Callable[[asyncio.AbstractEventLoop], None]) -> Any:
    """Wrap asgiref's AsyncToSync.main_wrap: a coroutine that runs on a loop we may not know."""

    def make(main_wrap: Callable[..., Any]) -> Callable[..., Any]:
        async def main_wrap_for_request(self: Any, *args: Any, **kwargs: Any) -> Any:
            record = request_here()
            if record is None:
                return await main_wrap(self, *args, **kwargs)
            adopt(asyncio.get_running_loop())
            return await record.step(main_wrap(self, *args, **kwargs))

        return main_wrap_for_request

    return make


class Handover:
    """The choke points where Python gives work to threads.

    ``remove`` restores what is still ours. Class attributes are replaced, so ``from x import y``
    copies of functions are right as well. Not thread-safe: the tracer calls it under its lock.
    """

    def __init__(self, adopt: Callable[[asyncio.AbstractEventLoop], None]) -> None:
        self._adopt = adopt
        self._replaced: list[tuple[type, str, Any, Any]] = []
        self._imports = ImportWatch(WATCHED, self._wrap)

    def install(self) -> None:
        """Wrap every choke point, those of libraries that come later as they come."""
        self._imports.install()
        self._wrap()

    def _wrap(self) -> None:
        self._replace(ThreadPoolExecutor, "submit", _executor_submit)
        self._replace(threading.Thread, "start", _thread_start)
        self._replace_in(
            "asgiref.current_thread_executor", "CurrentThreadExecutor", "submit", _executor_submit
        )
        self._replace_in("asgiref.sync", "AsyncToSync", "main_wrap", _main_wrap(self._adopt))
        self._replace_in(
            "anyio._backends._asyncio",
            "AsyncIOBackend",
            "run_sync_in_worker_thread",
            _run_sync_in_worker_thread,
        )
        # anyio on trio, and trio itself, take their threads here.
        self._replace_in(
            "trio._core._thread_cache", "ThreadCache", "start_thread_soon", _start_thread_soon
        )

    def _replace_in(self, module: str, owner: str, name: str, make: Callable[..., Any]) -> None:
        found = getattr(sys.modules.get(module), owner, None)
        if isinstance(found, type):
            self._replace(found, name, make)

    def _replace(self, owner: type, name: str, make: Callable[..., Any]) -> None:
        before = owner.__dict__.get(name)
        if before is None:
            return
        is_classmethod = isinstance(before, classmethod)
        function = before.__func__ if is_classmethod else before
        if hasattr(function, MARK):
            return
        wrapper = make(function)
        setattr(wrapper, MARK, function)
        after = classmethod(wrapper) if is_classmethod else wrapper
        setattr(owner, name, after)
        self._replaced.append((owner, name, before, after))

    def remove(self) -> None:
        """Put back what nobody has replaced since."""
        self._imports.remove()
        while self._replaced:
            owner, name, before, after = self._replaced.pop()
            if owner.__dict__.get(name) is after:
                setattr(owner, name, before)
