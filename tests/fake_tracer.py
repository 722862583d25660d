"""A tracer without a kernel: its clock and its counters move only when a test moves them."""

from __future__ import annotations

from dataclasses import replace
from struct import pack
from typing import Any

from kerneltrace_core.errors import PrivilegeError
from kerneltrace_core.requests import KernelStats, layout
from kerneltrace_core.requests.measures import Measures

ALL = Measures(
    backend="bpf",
    **dict.fromkeys(
        (
            *("ledger", "causes", "calls", "call_times", "files", "net", "retransmits"),
            *("block", "disk_bytes", "faults", "processes"),
        ),
        True,
    ),
)
MS = 1_000_000


class FakeRecord:
    """A record whose ``words`` a test writes; time passes by ``spend`` only."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.words = [0] * layout.BLOCK_WORDS
        self.words[layout.START_NS] = self.words[layout.END_NS] = 1000
        self.words[layout.VALUE] = value
        self.steps: list[Any] = []

    def step(self, coro: Any) -> Any:
        self.steps.append(coro)
        return coro

    def spend(self, ns: int, **counters: int) -> None:
        """Run for ``ns`` on the loop, and add to words named as in the layout."""
        self.words[layout.END_NS] += ns
        self.words[layout.RUN_NS] += ns
        held = self.words[layout.LOOP_BLOCK_MAX_NS]
        self.words[layout.LOOP_BLOCK_MAX_NS] = max(held, ns)
        for name, amount in counters.items():
            self.words[getattr(layout, name)] += amount

    def block_on(self, cause: str, ns: int) -> None:
        """Be blocked for ``ns`` on the loop's thread."""
        self.spend(ns)
        where = layout.BANK + layout.BLOCKED_NS + layout.CAUSES.index(cause)
        self.words[where] += ns

    def call(self, name: str, *, errors: int = 0, ns: int = 0) -> None:
        """Make one system call."""
        where = layout.CALL + layout.CALL_INDEX[name] * layout.CALL_WORDS
        self.words[where] += 1
        self.words[where + 1] += errors
        self.words[where + 2] += ns

    def snapshot(self) -> bytes:
        return pack(f"<{layout.BLOCK_WORDS}Q", *self.words)

    mark = snapshot

    def close(self) -> bytes:
        if not self.value:
            raise ValueError("closed twice")
        block = self.snapshot()
        self.value = 0
        return block


class FakeTracer:
    """What RequestTracer does for integrations, and a note of each call."""

    backend = "bpf"

    def __init__(self, *, ready: bool = True, fails: bool = False) -> None:
        self.ready = ready
        self.fails = fails
        self.calls: list[str] = []
        self.finished: list[KernelStats] = []
        self.options: list[Any] = []

    def shared(self, options: Any = None) -> FakeTracer:
        self.options.append(options)
        return self

    def start(self) -> None:
        self.calls.append("start")
        if self.fails:
            raise PrivilegeError("load programs: permission denied (add CAP_BPF)")
        self.ready = True

    def start_soon(self) -> None:
        self.calls.append("start_soon")

    def stop(self) -> None:
        self.calls.append("stop")
        self.ready = False

    def adopt_loop(self) -> None:
        self.calls.append("adopt_loop")

    def open(self, kind: Any = KernelStats, *, loop: bool = True) -> Any:
        self.calls.append("open")
        return kind(FakeRecord(value=2 + len(self.finished)), replace(ALL, loop=loop))

    def finish(self, stats: KernelStats) -> None:
        self.calls.append("finish")
        assert stats.record is not None, "finished twice"
        stats.freeze(stats.record.close())
        stats.record = None
        self.finished.append(stats)


def spent(stats: KernelStats) -> FakeRecord:
    """Return the fake record behind ``stats``, for a handler to move its numbers."""
    return stats.record  # type: ignore[return-value]
