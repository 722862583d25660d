"""StatsBlock: the bytes behind KernelStats, live or frozen, and how they are decoded."""

from __future__ import annotations

from struct import Struct
from typing import TypeVar

from kerneltrace_core.requests import layout
from kerneltrace_core.requests.engine import Reading, difference
from kerneltrace_core.requests.measures import OFF, Measures

__all__ = ["StatsBlock"]

Self = TypeVar("Self", bound="StatsBlock")

_WORD = Struct("<Q").unpack_from
_BANK_BLOCKED = Struct(f"<{len(layout.CAUSES)}Q").unpack_from
_CALLS = Struct(f"<{layout.CALLS * layout.CALL_WORDS}Q").unpack_from
_NO_BLOCK = bytes(layout.BLOCK_WORDS * 8)

FLAG_UNSEEN = 2  # of the ledger: see _native/step/types.h

_START, _AFTER_START = layout.START_NS * 8, layout.START_NS * 8 + 8
_END, _AFTER_END = layout.END_NS * 8, layout.END_NS * 8 + 8

# Words that hold a state, a moment or a maximum: a difference of two blocks takes the later one.
_NOT_SUMMED = bytes(
    index
    in (
        *(0, layout.END_NS, layout.LOOP_BLOCK_MAX_NS, layout.THREADS_USED),
        *(layout.DETACHED, layout.FLAGS, layout.VALUE),
    )
    for index in range(layout.BLOCK_WORDS)
)


class StatsBlock(Reading):
    """One request's counters and ledger, in the layout of a region's slot and a record's ledger.

    Reading, in C, has what every request needs: ``record``, while that is open, ``mark``,
    ``freeze`` and ``finish``.
    """

    __slots__ = ()

    @classmethod
    def off(cls: type[Self]) -> Self:
        """Return stats of a request that was not traced: every measure is None."""
        stats = cls(None, OFF)
        stats._block = _NO_BLOCK
        return stats

    @classmethod
    def of_block(
        cls: type[Self], block: bytes, measures: Measures, phase: str = "response"
    ) -> Self:
        """Wrap a block that a record's mark, snapshot or close returned."""
        stats = cls(None, measures)
        stats._block = block
        stats._phase = phase
        return stats

    @classmethod
    def between(
        cls: type[Self],
        earlier: bytes,
        later: bytes,
        *,
        like: StatsBlock,
        phase: str = "background",
    ) -> Self:
        """Return the stats of the time between two blocks of one record."""
        summed = difference(earlier, later, _NOT_SUMMED)
        begin = earlier[_END:_AFTER_END]
        block = summed[:_START] + begin + summed[_AFTER_START:]
        return cls.of_block(block, like._measures, phase)

    # ---- life -----------------------------------------------------------------

    def block(self) -> bytes:
        """Return the bytes that the attributes decode: frozen ones, or a snapshot of now."""
        if self._block is not None:
            return self._block
        if self.record is None:
            return _NO_BLOCK
        return self.record.snapshot()

    @property
    def phase(self) -> str:
        """What is described: ``response``, ``background``, or a websocket's ``message``."""
        return self._phase

    @property
    def background(self: Self) -> Self | None:
        """What the request did after its last body message; None if that was its end."""
        if self._whole is None or self._whole is self._block or self._block is None:
            return None
        return self.between(self._block, self._whole, like=self)

    @property
    def backend(self) -> str:
        """``bpf``, ``procfs`` or ``off``."""
        return self._measures.backend

    @property
    def attribution(self) -> str:
        """``exact``, or ``none``: no slot or thread entry was free, or nothing is traced."""
        return "exact" if self._charged() else "none"

    # ---- decoding -------------------------------------------------------------

    def _charged(self) -> bool:
        # Work of a thread that the kernel does not watch is missing: then all of it is unknown.
        return (
            self._measures.ledger
            and self._word(layout.VALUE) != 0
            and not self._word(layout.FLAGS) & FLAG_UNSEEN
        )

    def _word(self, index: int) -> int:
        value: int = _WORD(self.block(), index * 8)[0]
        return value

    def _between_words(self, first: int, last: int) -> int:
        # One block: two reads of a live one would be of two moments.
        block = self.block()
        difference: int = _WORD(block, last * 8)[0] - _WORD(block, first * 8)[0]
        return difference

    def _if(self, measured: bool, index: int) -> int | None:
        return self._word(index) if measured and self._charged() else None

    def _ledger(self, index: int) -> int | None:
        return self._word(index) if self._measures.ledger else None

    def _of_loop(self, index: int) -> int | None:
        return self._ledger(index) if self._measures.loop else None

    def _bank(self, bank: int, index: int, measured: bool = True) -> int | None:
        where = layout.BANK + bank * layout.BANK_WORDS + index
        return self._if(self._measures.ledger and measured, where)

    def _both(self, index: int, measured: bool = True) -> int | None:
        loop, threads = self._bank(0, index, measured), self._bank(1, index, measured)
        return None if loop is None or threads is None else loop + threads

    def _blocked(self, bank: int) -> tuple[int, ...] | None:
        if not self._charged():
            return None
        where = layout.BANK + bank * layout.BANK_WORDS + layout.BLOCKED_NS
        return _BANK_BLOCKED(self.block(), where * 8)

    def _blocked_ns(self, bank: int) -> int | None:
        causes = self._blocked(bank)
        return None if causes is None else sum(causes)

    def _blocked_by(self, bank: int) -> dict[str, int] | None:
        causes = self._blocked(bank) if self._measures.causes else None
        return None if causes is None else dict(zip(layout.CAUSES, causes, strict=True))

    def _on_cpu(self, run: int, bank: int) -> int | None:
        # Of one moment: the difference of three that are not would be no time at all.
        now = self._of_one_moment()
        blocked, queued = now._blocked_ns(bank), now._bank(bank, layout.RUN_QUEUE_NS)
        if blocked is None or queued is None:
            return None
        return max(0, now._word(run) - queued - blocked)

    def _of_one_moment(self: Self) -> Self:
        if self._block is not None:
            return self
        return self.of_block(self.block(), self._measures, self._phase)

    def _calls(self) -> tuple[int, ...] | None:
        """Return calls, errors and ns of each system call in turn."""
        if not self._measures.calls or not self._charged():
            return None
        return _CALLS(self.block(), layout.CALL * 8)

    def _sum_calls(self, column: int, indices: tuple[int, ...] = ()) -> int | None:
        words = self._calls()
        if words is None:
            return None
        if not indices:
            return sum(words[column :: layout.CALL_WORDS])
        return sum(words[column + index * layout.CALL_WORDS] for index in indices)
