"""Frames, the records that a ring hands up, and which of them are of one type."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NoReturn, final

from kerneltrace_core.errors import OptionError

__all__ = ["MATCH", "OTHER_TAG", "WRONG_LENGTH", "Selector", "pack", "padded", "records"]

HEADER = struct.Struct("=II")  # the payload's length, and where it came from
ALIGNMENT = 8
TAG_CODES = {1: "=B", 2: "=H", 4: "=I", 8: "=Q"}
MOST_BYTES = 0xFFFFFFFF
MATCH, OTHER_TAG, WRONG_LENGTH = range(3)


def padded(length: int) -> int:
    """Return the bytes that a payload takes with the zeroes after it."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def records(frames: bytes, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Yield each record's place in the frames, its length and its origin.

    Raises OptionError where the frames end within a record.
    """
    if not isinstance(frames, bytes):
        raise TypeError(f"read frames: {type(frames).__name__} is not bytes")
    at, end = start, len(frames)
    while at < end:
        length, origin = HEADER.unpack_from(frames, at) if end - at >= HEADER.size else (0, 0)
        if end - at - HEADER.size < padded(length):
            raise OptionError(
                f"read frames: the record at byte {at} is of {length} bytes, "
                f"and {end - at} are left with its header"
            )
        yield at + HEADER.size, length, origin
        at += HEADER.size + padded(length)


@final
class Selector:
    """Say which records are of one type. Immutable; thread-safe.

    A record is when ``tag_offset`` is negative or the unsigned number of ``tag_size`` bytes at
    ``tag_offset`` is one of ``tags``, and its length is ``size + padding``; where not ``exact``,
    ``size`` or more. Raises OptionError for numbers that fit no record.
    """

    __slots__ = ("exact", "padding", "size", "tag_offset", "tag_size", "tags")

    size: int
    exact: bool
    tag_offset: int
    tag_size: int
    tags: tuple[int, ...]
    padding: int

    def __init__(
        self,
        size: int,
        exact: bool,
        tag_offset: int = -1,
        tag_size: int = 0,
        tags: tuple[int, ...] = (),
        padding: int = 0,
    ) -> None:
        tags = tuple(tags)
        if not 0 <= size <= MOST_BYTES or not 0 <= padding <= MOST_BYTES - size:
            raise OptionError(f"select records: no record is of {size} and {padding} bytes")
        if tag_offset < 0:
            tag_offset, tag_size, tags = -1, 0, ()
        elif tag_size not in TAG_CODES or tag_offset + tag_size > size:
            raise OptionError(
                f"select records: no tag of {tag_size} bytes at {tag_offset} in {size} bytes"
            )
        for tag in tags:
            if not 0 <= tag < 1 << 8 * tag_size:
                raise OptionError(f"select records: tag {tag} does not fit in {tag_size} bytes")
        for name, value in zip(
            ("size", "exact", "tag_offset", "tag_size", "tags", "padding"),
            (size, bool(exact), tag_offset, tag_size, tags, padding),
            strict=True,
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"change {name}: selectors are immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"change {name}: selectors are immutable")

    def _values(self) -> tuple[int, bool, int, int, tuple[int, ...], int]:
        return self.size, self.exact, self.tag_offset, self.tag_size, self.tags, self.padding

    def judge(self, frames: bytes, at: int, length: int) -> int:
        """Return MATCH, OTHER_TAG or WRONG_LENGTH for the record at ``at``."""
        if self.tag_offset >= 0:
            if length < self.tag_offset + self.tag_size:
                return WRONG_LENGTH
            (tag,) = struct.unpack_from(TAG_CODES[self.tag_size], frames, at + self.tag_offset)
            if tag not in self.tags:
                return OTHER_TAG
        fits = length == self.size + self.padding if self.exact else length >= self.size
        return MATCH if fits else WRONG_LENGTH

    def count(self, frames: bytes) -> tuple[int, int, int]:
        """Count the records: of this type, of another tag, of this tag but a wrong length.

        A record too short for the tag is one of a wrong length.
        """
        counts = [0, 0, 0]
        for at, length, _ in records(frames):
            counts[self.judge(frames, at, length)] += 1
        return counts[MATCH], counts[OTHER_TAG], counts[WRONG_LENGTH]

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Selector) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[object, ...]:
        return Selector, self._values()

    def __repr__(self) -> str:
        return (
            "Selector(size={}, exact={}, tag_offset={}, tag_size={}, tags={}, padding={})".format(
                *self._values()
            )
        )


def pack(frames: bytes, selector: Selector, skip: int, take: int) -> bytearray:
    """Copy matching records one after the other, ``selector.size`` bytes each.

    Leaves out the first ``skip`` of them and ends after ``take``, or with the frames.
    Raises OptionError if the selector is not exact.
    """
    if not selector.exact:
        raise OptionError("pack records: their lengths differ (the selector is not exact)")
    if skip < 0 or take < 0:
        raise OptionError(f"pack records: cannot skip {skip} and take {take}")
    packed = bytearray()
    walk = records(frames)
    while take and (record := next(walk, None)):
        at, length, _ = record
        if selector.judge(frames, at, length) != MATCH:
            continue
        if skip:
            skip -= 1
            continue
        take -= 1
        packed += frames[at : at + selector.size]
    return packed
