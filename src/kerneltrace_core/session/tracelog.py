"""The kernel's trace log: what programs write with bpf_printk, line by line."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from kerneltrace_core.errors import (
    ClosedError,
    KernelTraceError,
    OptionError,
    PrivilegeError,
    RingError,
    UnsupportedError,
)
from kerneltrace_core.kernel.tracefs import PLACES, find_tracefs
from kerneltrace_core.session.traceline import TraceLine, parse_line, parse_lost
from kerneltrace_core.session.waiting import checkpoint, new_waiter

__all__ = ["TraceLog", "check_timeout", "trace_log"]

READ_BYTES = 65_536
READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
MOUNT = "mount -t tracefs tracefs /sys/kernel/tracing"
READABLE = (
    "run as root, or let a group in: mount -o remount,gid=GROUP,mode=0750 /sys/kernel/tracing"
)


def trace_log(*, timeout: float | None = None, places: tuple[str, ...] = PLACES) -> TraceLog:
    """Open the trace log; iterate with ``for`` or ``async for``.

    There is one for the whole machine: it has the lines of every program of every session, from
    before this call too, nothing in them says which program it was, and each line goes to one
    reader only (``cat trace_pipe`` is one, too). The newest kernels begin to write it a moment
    after a program was loaded. For debugging. ``timeout``: seconds without a line after which
    the iteration ends, None to wait.

    Needs tracefs, which is mounted by nobody here. Raises UnsupportedError if it is not there,
    PrivilegeError if it may not be read, RingError if no descriptor is left, OptionError.
    """
    check_timeout(timeout)
    try:
        mounted = find_tracefs(places)
        if mounted is None:
            raise UnsupportedError(
                f"read trace log: tracefs is not mounted ({MOUNT})", errno=errno.ENOENT
            )
        return TraceLog(mounted / "trace_pipe", timeout)
    except KernelTraceError:
        raise
    except PermissionError as error:
        raise PrivilegeError(
            f"read trace log: permission denied reading tracefs ({READABLE})", errno=error.errno
        ) from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise RingError(
                f"read trace log: {error.strerror} "
                "(a log takes three descriptors: raise the limit, ulimit -n)",
                errno=error.errno,
            ) from None
        raise UnsupportedError(f"read trace log: {error}", errno=error.errno) from error


def check_timeout(timeout: Any) -> None:
    """Refuse what is no time to wait. Raises OptionError."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise OptionError(f"trace_log option timeout: {timeout!r} is not None or seconds from 0")


class TraceLog:
    """Lines as they come. One thread or event loop reads; ``close`` may come from anywhere.

    ``lost``: entries that were overwritten before anybody read them, as the kernel counts them;
    ``others``: lines that are no program's (of ftrace, or the rest of a text with line breaks).
    """

    def __init__(self, path: Path | None, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._lines: deque[TraceLine] = deque()
        self._rest = b""
        # Reentrant: a signal handler may close it in the midst of a read.
        self._lock = threading.RLock()
        self.lost = 0
        self.others = 0
        # None is a log of a test, whose lines come from elsewhere.
        with ExitStack() as undo:
            self._fd = -1 if path is None else os.open(path, READ_FLAGS)
            if path is not None:
                undo.callback(os.close, self._fd)
            self._waiter = new_waiter(self._fd)
            undo.pop_all()

    def __enter__(self) -> TraceLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> TraceLog:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> TraceLog:
        self._check_open()
        return self

    def __next__(self) -> TraceLine:
        deadline = self._deadline()
        while True:
            found = self._next()
            if found is not None:
                return found
            left = self._left(deadline)
            if self.closed or left == 0:
                raise StopIteration
            self._waiter.wait(left)

    def __aiter__(self) -> TraceLog:
        self._check_open()
        return self

    async def __anext__(self) -> TraceLine:
        # Other tasks run even if there is always a next line.
        await checkpoint()
        deadline = self._deadline()
        while True:
            found = self._next()
            if found is not None:
                return found
            left = self._left(deadline)
            if self.closed or left == 0:
                raise StopAsyncIteration
            await self._waiter.wait_async(left)

    def __del__(self) -> None:
        # An attribute is missing if __init__ raised.
        if getattr(self, "_waiter", None) is not None:
            self.close()

    @property
    def closed(self) -> bool:
        """Whether it is closed: what was read before is still delivered, then it ends."""
        return self._fd < 0

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._waiter.wake()

    def close(self) -> None:
        """Wake the reader and give the descriptor back; may be repeated."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)
        self._waiter.close()

    def abandon(self) -> None:
        """In a forked child: give up its copies; the parent's reader goes on."""
        self._lock = threading.RLock()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._waiter.abandon()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("read trace log: it is closed")

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    @staticmethod
    def _left(deadline: float | None) -> float | None:
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _next(self) -> TraceLine | None:
        """Return a line that is there, without waiting."""
        while not self._lines and self._read():
            pass
        return self._lines.popleft() if self._lines else None

    def _read(self) -> bool:
        """Take what the kernel has; False if it has nothing."""
        with self._lock:
            if self._fd < 0:
                return False
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                return False
            except OSError:
                if self.closed:
                    return False
                raise
        if not data:
            # Tracing was switched off, and everything has been read.
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for each in lines:
            self._take(each.decode("utf-8", "backslashreplace"))
        return True

    def _take(self, line: str) -> None:
        found = parse_line(line)
        if found is not None:
            self._lines.append(found)
        elif lost := parse_lost(line):
            self.lost += lost
        else:
            self.others += 1
