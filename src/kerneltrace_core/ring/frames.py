"""Frames in Python: take them apart, and keep some of them."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator

from kerneltrace_core.ring.protocol import Layout

__all__ = ["HEADER", "keep", "keep_if", "make_frame", "split"]

HEADER = struct.Struct("=II")


def make_frame(payload: bytes, origin: int = 0) -> bytes:
    """Return one record as a frame."""
    return HEADER.pack(len(payload), origin) + payload + bytes(-len(payload) % 8)


def split(frames: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield each record's payload and origin."""
    at, end = 0, len(frames)
    while at < end:
        length, origin = HEADER.unpack_from(frames, at)
        at += HEADER.size
        yield frames[at : at + length], origin
        at += -(-length // 8) * 8


def keep_if(frames: bytes, wanted: Callable[[bytes], object]) -> tuple[bytes, int]:
    """Return the frames whose payload a function likes, and how many they are. Slow."""
    kept = [make_frame(*record) for record in split(frames) if wanted(record[0])]
    return b"".join(kept), len(kept)


def keep(frames: bytes, layout: Layout, exact: bool) -> bytes:
    """Return the frames of one type, so that the others need not be kept for their sake."""
    try:
        from kerneltrace_core._native import rings
    except ImportError:
        return keep_if(frames, lambda payload: _is(payload, layout, exact))[0]
    return rings.select_frames(frames, rings.wanted(*layout), exact)


def _is(payload: bytes, layout: Layout, exact: bool) -> bool:
    size, offset, width, tags = layout
    if len(payload) != size if exact else len(payload) < size:
        return False
    return offset < 0 or int.from_bytes(payload[offset : offset + width], sys.byteorder) in tags
