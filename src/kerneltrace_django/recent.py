"""The last requests of this process, in memory: no database, and nothing to clean up."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from contextvars import Context
from typing import Any, NamedTuple

from kerneltrace_core.exporters.logs import kernel_fields
from kerneltrace_core.requests import KernelStats
from kerneltrace_core.requests.engine import pop, push
from kerneltrace_django.recent_socket import RecentServer
from kerneltrace_django.settings import DjangoOptions

__all__ = ["RecentRequest", "connect", "folder_of", "recent_requests", "stop"]

log = logging.getLogger("kerneltrace")


def folder_of(options: DjangoOptions) -> str | None:
    """Return the folder in which the processes answer, None where they do not."""
    folder: str | None = getattr(options, "recent_socket", None)
    return folder


class RecentRequest(NamedTuple):
    """A finished request, and when it finished (seconds since the epoch)."""

    time: float
    method: str
    path: str
    route: str | None
    status_code: int | None
    stats: KernelStats

    def as_document(self) -> dict[str, Any]:
        """Return what JSON can say: the fields of the request's log record, and ``db``."""
        db = getattr(self.stats, "db", None) or {}
        return {
            **dict(zip(self._fields[:-1], self[:-1], strict=True)),
            **kernel_fields(self.stats),
            "db": {alias: work._asdict() for alias, work in db.items()},
        }


class Recent:
    """What this process remembers under one set of options. Thread-safe."""

    def __init__(self, options: DjangoOptions) -> None:
        self.options = options
        self.most: int = options.recent_requests
        self._requests: deque[tuple[Any, ...]] = deque(maxlen=self.most)
        self.server: RecentServer | None = None
        self._folder = folder_of(options)
        self._lock = threading.Lock()

    def remember(self, request: Any, stats: KernelStats, status_code: int | None) -> None:
        """Append one request, and answer on the socket from the first one on."""
        if not self.most:
            return
        match = request.resolver_match
        # Made into a RecentRequest by who asks: few of them are ever looked at.
        self._requests.append(
            (
                time.time(),
                request.method,
                request.path,
                None if match is None else match.route,
                status_code,
                stats,
            )
        )
        if self._folder is not None:
            self._serve()

    @property
    def requests(self) -> list[RecentRequest]:
        """The requests, the oldest first."""
        return [RecentRequest(*each) for each in list(self._requests)]

    def _serve(self) -> None:
        with self._lock:
            folder, self._folder = self._folder, None  # tried once
        if folder is None:
            return
        previous = push(None)  # the thread is nobody's, not of a request that this one is made in
        try:
            self.server = Context().run(RecentServer.open, folder, self.documents)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread to be had
            log.warning(
                "serve recent requests in %s: %s (KERNELTRACE['RECENT_SOCKET'] is the path of a "
                "folder that this process's user owns and nobody else may write to)",
                *(folder, getattr(error, "strerror", None) or error),
            )
        finally:
            pop(previous)

    def documents(self) -> list[dict[str, Any]]:
        """Return the requests, the oldest first."""
        return [request.as_document() for request in self.requests]


_recent: Recent | None = None
_connected = False


def recent_requests() -> list[RecentRequest]:
    """Return the last KERNELTRACE["RECENT_REQUESTS"] requests of this process, oldest first."""
    return _recent.requests if _recent is not None else []


def remember(
    options: DjangoOptions, request: Any, stats: KernelStats, status_code: int | None
) -> None:
    """Take note of a request; costs about a microsecond."""
    global _recent
    found = _recent
    if found is None or found.options is not options:
        stop()
        found = _recent = Recent(options)
    found.remember(request, stats, status_code)


def stop() -> None:
    """Forget every request, and answer no more."""
    global _recent
    found, _recent = _recent, None
    if found is not None and found.server is not None:
        found.server.close()


def connect() -> None:
    """Have processes that this one forks forget what it remembers, and serve their own."""
    global _connected
    if not _connected:
        _connected = True
        # What its parent has served a child has not: the server sees that it is in another one.
        os.register_at_fork(after_in_child=stop)
