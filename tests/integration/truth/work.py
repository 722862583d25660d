"""Work of a known amount: the same few system calls, so many times, and the count kept apart."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from pathlib import Path

READ_BYTES = 512
WRITE_BYTES = 128
SENT_BYTES = 64
FSYNCS_MAX = 3
# What a unit of work calls, and nothing else in these programs does: see Desk.unit.
READ_CALL = "preadv2"
CALLS = (READ_CALL, "pwrite64", "getppid", "fsync", "sendmsg")


class Desk:
    """The files and the socket that a process works with, opened before it is traced."""

    def __init__(self, folder: Path) -> None:
        self.data = str(folder / "data")
        self.missing = str(folder / "missing")
        Path(self.data).write_bytes(bytes(4096))
        self._file = os.open(self.data, os.O_RDWR | os.O_CLOEXEC)
        # Nothing is ever written to this one: its fsync is a call and no wait.
        self._clean = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        self._buffer = bytearray(READ_BYTES)
        self._block = bytes(WRITE_BYTES)
        # Nobody reads: what is too much for its buffer is dropped, and was sent all the same.
        self._sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sink.bind(("127.0.0.1", 0))
        self._source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._to = self._sink.getsockname()

    def unit(self) -> None:
        """Read, write, open, fail to open, and ask for the parent's id: each once."""
        os.preadv(self._file, [self._buffer], 0)
        os.pwrite(self._file, self._block, 0)
        os.close(os.open(self.data, os.O_RDONLY | os.O_CLOEXEC))
        with contextlib.suppress(FileNotFoundError):
            os.open(self.missing, os.O_RDONLY)
        os.getppid()

    def fsync(self) -> None:
        os.fsync(self._clean)

    def send(self, size: int) -> None:
        self._source.sendmsg([bytes(size)], [], 0, self._to)

    def close(self) -> None:
        os.close(self._file)
        os.close(self._clean)
        self._sink.close()
        self._source.close()


class Job:
    """So many units of work for one request; a few fsyncs and one send are done on the way.

    Units may be done in any task and thread; ``done`` is how many were.
    """

    def __init__(self, desk: Desk, planned: int) -> None:
        self.desk = desk
        self.planned = planned
        self.fsyncs = min(planned, 1 + planned % FSYNCS_MAX)
        self._turns = itertools.count()
        self._lock = threading.Lock()
        self.done = 0

    def unit(self) -> None:
        turn = next(self._turns)
        self.desk.unit()
        if turn < self.fsyncs:
            self.desk.fsync()
        if turn == 0:
            self.desk.send(self.planned * SENT_BYTES)
        with self._lock:
            self.done += 1

    def units(self, count: int) -> None:
        """Do so many, for use where nothing may be awaited; let go of the GIL now and then."""
        for turn in range(count):
            self.unit()
            if turn % 16 == 15:
                time.sleep(0.0002)

    def calls(self) -> dict[str, int]:
        """Return how often each call was made for this job; opens succeeded, misses did not."""
        return {
            READ_CALL: self.done,
            "pwrite64": self.done,
            "getppid": self.done,
            "fsync": min(self.fsyncs, self.done),
            "sendmsg": min(1, self.done),
            "opens": self.done,
            "misses": self.done,
        }

    def bytes_moved(self) -> dict[str, int]:
        """Return the bytes read, written and sent for this job."""
        return {
            "read_bytes": self.done * READ_BYTES,
            "write_bytes": self.done * WRITE_BYTES,
            "net_tx_bytes": self.planned * SENT_BYTES if self.done else 0,
        }
