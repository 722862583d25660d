"""Recordings: what a session's rings held, in a file that any machine can replay."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from kerneltrace_core.errors import FormatError
from kerneltrace_core.session.session import Session
from kerneltrace_core.session.source import read_object
from kerneltrace_core.testing.session import FakeSession

__all__ = ["Replay", "record", "replay"]

MAGIC = b"kerneltrace recording 1\n"
SIZE = struct.Struct("<I")
RECORD = struct.Struct("<II")  # ring, length


@contextmanager
def record(session: Session, path: str | Path) -> Iterator[None]:
    """Write every record that a session's rings hand up in this block to a file.

    The object itself is written too, so that a replay knows its types. One daemon thread for each
    ring reads until nothing came for 0.2 s after the block's end. Raises OSError, ClosedError.
    """
    name, data = read_object(session.options.object)
    rings = session.rings
    header = json.dumps({"object": name, "rings": list(rings)}).encode()
    with Path(path).open("wb") as file:
        file.write(MAGIC + SIZE.pack(len(header)) + header + SIZE.pack(len(data)) + data)
        lock, ended = threading.Lock(), threading.Event()
        threads = [
            _Recorder(session.raw(ring=ring, timeout=0.2), number, file, lock, ended)
            for number, ring in enumerate(rings)
        ]
        for each in threads:
            each.start()
        try:
            yield
        finally:
            ended.set()
            for each in threads:
                each.join()


class _Recorder(threading.Thread):
    def __init__(
        self, stream: Any, ring: int, file: BinaryIO, lock: threading.Lock, ended: threading.Event
    ) -> None:
        super().__init__(name="kerneltrace-record", daemon=True)
        self._stream = stream
        self._ring = ring
        self._file = file
        self._lock = lock
        self._ended = ended

    def run(self) -> None:
        with self._stream as stream:
            while True:
                last = self._ended.is_set()
                for payload in stream:
                    with self._lock:
                        self._file.write(RECORD.pack(self._ring, len(payload)) + payload)
                if last or stream.closed:
                    return


class Replay(FakeSession):
    """A recorded session: its streams give what was recorded, and end. Made by ``replay``."""

    def __init__(self, data: bytes, name: str, records: list[tuple[str, bytes]]) -> None:
        super().__init__(data, name=name)
        self._records = records

    def _assemble(self) -> Any:
        parts: Any = super()._assemble()
        for ring, payload in self._records:
            fake = parts.rings[ring]
            fake.size_bytes = max(fake.size_bytes, fake.pending_bytes() + len(payload) + 16)
            fake.submit(payload)
        return parts

    def events(self, kind: Any, **how: Any) -> Any:
        """Iterate over the recorded events of one type, and end."""
        return super().events(kind, **{"timeout": 0, "queue_size": len(self._records) + 1, **how})

    def raw(self, **how: Any) -> Any:
        """Iterate over the recorded records, and end."""
        return super().raw(**{"timeout": 0, "queue_size": len(self._records) + 1, **how})

    def batches(self, kind: Any, **how: Any) -> Any:
        """Iterate over the recorded events of one type as columns, and end."""
        return super().batches(kind, **{"timeout": 0, "queue_size": len(self._records) + 1, **how})


def replay(path: str | Path) -> Replay:
    """Return a session that gives what ``record`` wrote, in order, on any operating system.

    Open it as any session. Several streams of one ring each get everything only if all are made
    before the first is read. Raises OSError; FormatError for a file that is no recording, or
    whose end is missing.
    """
    data = Path(path).read_bytes()
    if not data.startswith(MAGIC):
        raise FormatError(f"read recording {path}: it is none (it does not begin as one)")
    try:
        header, at = _sized(data, len(MAGIC))
        described = json.loads(header)
        program, at = _sized(data, at)
        records = []
        while at < len(data):
            ring, length = RECORD.unpack_from(data, at)
            at += RECORD.size
            if at + length > len(data):
                raise ValueError("a record without its end")
            records.append((described["rings"][ring], data[at : at + length]))
            at += length
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise FormatError(f"read recording {path}: it is damaged ({error})") from error
    return Replay(program, str(described["object"]), records)


def _sized(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = SIZE.unpack_from(data, at)
    begin = at + SIZE.size
    if begin + size > len(data):
        raise ValueError("its end is missing")
    return data[begin : begin + size], begin + size
