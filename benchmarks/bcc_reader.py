"""Drain a ring through BCC, whenever a line comes; its own interpreter, which has BCC.

For each line the events drained and the CPU time of one, in nanoseconds, are printed.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

from bcc.libbcc import lib  # type: ignore[import-not-found]


class Record(ctypes.Structure):
    """As BCC's own tools declare what their callback gets."""

    _fields_ = [
        ("type", ctypes.c_uint16),
        ("size", ctypes.c_uint16),
        ("cpu", ctypes.c_uint32),
        ("time_ns", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 4),
    ]


def main(fd: int) -> None:
    """Serve until the input ends."""
    seen = 0
    callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    pointer = ctypes.POINTER(Record)

    def callback(_context: Any, data: Any, _size: int) -> int:
        nonlocal seen
        ctypes.cast(data, pointer).contents  # noqa: B018 - what table.event(data) does
        seen += 1
        return 0

    kept = callback_type(callback)
    ring = lib.bpf_new_ringbuf(fd, kept, None)
    for _ in sys.stdin:
        seen = 0
        begin = time.thread_time_ns()
        lib.bpf_consume_ringbuf(ring)
        took = time.thread_time_ns() - begin
        print(seen, took / max(seen, 1), flush=True)


main(int(sys.argv[1]))
