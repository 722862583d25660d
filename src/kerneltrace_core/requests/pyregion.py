"""A region of the twin's: which slots are taken, and what came after they were given back."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from kerneltrace_core.requests.layout import TCP_RETRANSMITS
from kerneltrace_core.requests.pyrecord import Record
from kerneltrace_core.requests.pythreads import THREAD_WORDS, Thread, Unraisable, this_thread

__all__ = ["Region"]

SLOT_FIRST = 2  # 0: unattributed, 1: late
SLOT_WORDS_MIN = TCP_RETRANSMITS + 1
REST_SLOTS = 16  # closed slots that rest before one of them is used again
U64 = (1 << 64) - 1


class Region:
    """The memory shared with the BPF programs: thread entries and slots."""

    def __init__(
        self,
        memory: Any,
        address: int,
        threads: int,
        slots: int,
        slots_offset: int,
        slot_bytes: int,
        register: Callable[[], None],
    ) -> None:
        view = memoryview(memory)
        if view.readonly:
            raise ValueError("open region: the memory is read-only")
        if (
            threads < 1
            or not SLOT_FIRST <= slots <= 1 << 24
            or not 8 * SLOT_WORDS_MIN <= slot_bytes <= 1 << 24
            or slot_bytes % 8
            or slots_offset % 8
            or address % 8
            or not address
            or threads * 8 * THREAD_WORDS > slots_offset
            or slots_offset + slots * slot_bytes > view.nbytes
        ):
            raise ValueError(
                f"open region: {threads} threads and {slots} slots of {slot_bytes} bytes "
                f"at {slots_offset} do not fit {view.nbytes} bytes"
            )
        self.sampler: Callable[[int, int], None] | None = None
        self.ready_at: Callable[[object], int] | None = None
        self.doubt_ns = 1_000_000
        self._address = address
        self._words = view.cast("B")[: view.nbytes & ~7].cast("Q")
        self._register = register
        self._thread_count = threads
        self._slots = slots
        self._slots_word = slots_offset // 8
        self._slot_bytes = slot_bytes
        self._zeros = memoryview(bytes(slot_bytes)).cast("Q")
        self._forgotten = False
        self._threads: set[Thread] = set()
        self._next_fresh = SLOT_FIRST
        self._rest: deque[int] = deque()
        # By slot: its final block, or b"" if that was never read.
        self._copies: dict[int, bytes] = {}
        # By slot: its retransmissions at the copy, where nothing else can come.
        self._sent: dict[int, int] = {}
        self._late = [0] * (slot_bytes // 8)
        self._open = 0
        self._exhausted = 0

    @property
    def slots_open(self) -> int:
        """Slots in use."""
        return self._open

    @property
    def slots_exhausted(self) -> int:
        """How often ``open()`` found no slot."""
        return self._exhausted

    def bind(self, index: int) -> None:
        """Give this thread entry ``index``; -1: a private one that nobody sees."""
        if not -1 <= index < self._thread_count:
            last = self._thread_count - 1
            raise ValueError(f"bind thread: no entry {index} (-1 to {last})")
        this_thread().bind(self, index)

    def unbind(self) -> None:
        """Clear this thread's cell and leave it."""
        thread = this_thread()
        if thread.region is self:
            thread.bind(None, -1)

    def bound(self) -> bool:
        """Tell whether this thread is bound here."""
        return this_thread().region is self

    def open(self) -> Record:
        """Take a slot and return its Record, which has value 0 if all were taken."""
        slot = self._take()
        if not slot:
            return Record(self, 0)
        words = self._slot(slot)
        generation = ((words[0] & 0xFFFFFFFF) + 1) & 0xFFFFFFFF or 1
        words[:] = self._zeros
        words[0] = generation
        self._open += 1
        return Record(self, slot | generation << 32)

    def late(self) -> bytes:
        """Return what closed slots got after their copy."""
        sums = list(self._late)
        if not self._forgotten:
            for slot in self._copies.keys() | self._sent.keys():
                self._add_residual(slot, sums)
        return struct.pack(f"<{len(sums)}Q", *sums)

    def forget(self) -> None:
        """Never touch the memory again."""
        self._forgotten = True
        for thread in self._threads:
            thread.words, thread.base = thread.hidden, 0
        self._words.release()

    def _ask_ready_at(self, coro: object) -> int:
        ready = 0
        if self.ready_at is not None:
            try:
                ready = self.ready_at(coro)
                if not 0 <= ready <= U64:
                    raise OverflowError(f"ready_at: {ready} is not a time")
            except BaseException as error:  # noqa: BLE001 - has no caller to go to
                ready = 0
                Unraisable(error)
        return ready

    def _slot(self, slot: int) -> memoryview[int]:
        size = self._slot_bytes // 8
        begin = self._slots_word + slot * size
        return self._words[begin : begin + size]

    def _take(self) -> int:
        """Reuse slots first-in first-out, but out of a small set that stays in the caches."""
        if self._forgotten:
            return 0
        if len(self._rest) <= REST_SLOTS and self._next_fresh < self._slots:
            self._next_fresh += 1
            return self._next_fresh - 1
        try:
            slot = self._rest.popleft()
        except IndexError:
            self._exhausted += 1
            return 0
        self._add_residual(slot, self._late)
        self._copies.pop(slot, None)
        self._sent.pop(slot, None)
        return slot

    def _give(self, value: int, copy: bytes | None, sent: int | None = None) -> None:
        slot = value & 0xFFFFFFFF
        self._rest.append(slot)
        self._open -= 1
        if copy is not None:
            self._copies[slot] = copy
        if sent is not None:
            self._sent[slot] = sent

    def _retire(self, value: int) -> None:
        """Make the slot's generation fit no cell that is published now."""
        words = self._slot(value & 0xFFFFFFFF)
        words[0] = ((value >> 32) + 1) & 0xFFFFFFFF or 1

    def _add_residual(self, slot: int, sums: list[int]) -> None:
        now = self._slot(slot)
        if slot in self._sent:
            sums[TCP_RETRANSMITS] += now[TCP_RETRANSMITS] - self._sent[slot]
        if slot not in self._copies:
            return
        copy = self._copies[slot] or bytes(self._slot_bytes)
        copied = memoryview(copy)[: self._slot_bytes].cast("Q")
        if now[1:] == copied[1:]:
            return
        for word in range(1, len(sums)):
            sums[word] = (sums[word] + now[word] - copied[word]) & U64
