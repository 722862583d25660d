"""Recordings: what a session's rings held, in a file that any machine can replay."""

from __future__ import annotations

import json
import logging
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from kerneltrace_core.errors import FormatError
from kerneltrace_core.session.session import Session
from kerneltrace_core.session.source import read_object
from kerneltrace_core.session.streams import RawStream
from kerneltrace_core.testing.following import TICK_SECONDS, Follower
from kerneltrace_core.testing.session import FakeSession

__all__ = ["Replay", "record", "replay"]

MAGIC = b"kerneltrace recording 1\n"
SIZE = struct.Struct("<I")
RECORD = struct.Struct("<II")  # ring, length
SETTLE_SECONDS = 0.2

logger = logging.getLogger("kerneltrace")


@contextmanager
def record(session: Session, path: str | Path) -> Iterator[None]:
    """Write every record that a session's rings hand up in this block to a file.

    The object itself is written too, so that a replay knows its types. One daemon thread for each
    ring reads until nothing came for 0.2 s after the block's end, for ten seconds at most. What
    queues dropped is logged as a WARNING. Raises OSError, also when the file could not be
    written to its end; ClosedError.
    """
    name, data = read_object(session.options.object)
    rings = session.rings
    header = json.dumps({"object": name, "rings": list(rings)}).encode()
    with ExitStack() as end:
        file = end.enter_context(Path(path).open("wb"))
        file.write(MAGIC + SIZE.pack(len(header)) + header + SIZE.pack(len(data)) + data)
        lock = threading.Lock()
        for number, ring in enumerate(rings):
            stream = end.enter_context(session.raw(ring=ring, timeout=TICK_SECONDS))
            end.callback(_tell_dropped, stream, ring, path)
            write = partial(_write, file, lock, number)
            end.callback(Follower(session, stream, write, SETTLE_SECONDS).finish)
        yield


def _write(file: BinaryIO, lock: threading.Lock, ring: int, payload: bytes) -> None:
    with lock:
        file.write(RECORD.pack(ring, len(payload)) + payload)


def _tell_dropped(stream: RawStream, ring: str, path: str | Path) -> None:
    if dropped := stream.counts().dropped:
        logger.warning("record %s: %d records of ring %s were dropped", path, dropped, ring)


class Replay(FakeSession):
    """A recorded session: its streams give what was recorded, and end. Made by ``replay``."""

    def __init__(self, data: bytes, name: str, records: list[tuple[str, bytes]]) -> None:
        super().__init__(data, name=name)
        self._records = records

    def _assemble(self) -> Any:
        parts: Any = super()._assemble()
        for ring, payload in self._records:
            fake = parts.rings.get(ring)
            if fake is None:
                raise FormatError(f"replay session {self.name}: its object has no ring {ring}")
            fake.size_bytes = max(fake.size_bytes, fake.pending_bytes() + len(payload) + 16)
            fake.submit(payload)
        return parts

    def events(self, kind: Any, **how: Any) -> Any:
        """Iterate over the recorded events of one type, and end."""
        return super().events(kind, **self._to_the_end(how))

    def raw(self, **how: Any) -> Any:
        """Iterate over the recorded records, and end."""
        return super().raw(**self._to_the_end(how))

    def batches(self, kind: Any, **how: Any) -> Any:
        """Iterate over the recorded events of one type as columns, and end."""
        return super().batches(kind, **self._to_the_end(how))

    def process(self, callback: Callable[[Any], Any], kind: Any, **how: Any) -> int:
        """Call a function with each recorded event of one type, and end."""
        return super().process(callback, kind, **self._to_the_end(how))

    async def aprocess(self, callback: Callable[[Any], Any], kind: Any, **how: Any) -> int:
        """Do as ``process`` on an event loop."""
        return await super().aprocess(callback, kind, **self._to_the_end(how))

    def _to_the_end(self, how: dict[str, Any]) -> dict[str, Any]:
        return {"timeout": 0, "queue_size": len(self._records) + 1, **how}


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
        name = str(described["object"])
        rings = [str(each) for each in described["rings"]]
        program, at = _sized(data, at)
        records = []
        while at < len(data):
            ring, length = RECORD.unpack_from(data, at)
            at += RECORD.size
            if at + length > len(data):
                raise ValueError("a record without its end")
            records.append((rings[ring], data[at : at + length]))
            at += length
    except (ValueError, TypeError, LookupError, RecursionError, struct.error) as error:
        raise FormatError(f"read recording {path}: it is damaged ({error})") from error
    return Replay(program, name, records)


def _sized(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = SIZE.unpack_from(data, at)
    begin = at + SIZE.size
    if begin + size > len(data):
        raise ValueError("its end is missing")
    return data[begin : begin + size], begin + size
