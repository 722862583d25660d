"""KernelStats: what the kernel did for one request, decoded from a copied block on access."""

from __future__ import annotations

from itertools import compress
from operator import attrgetter
from struct import Struct
from typing import Any, NamedTuple

from kerneltrace_core.requests import layout
from kerneltrace_core.requests.block import StatsBlock

__all__ = ["FIELDS", "CallStats", "KernelStats"]

BLOCK = Struct(f"<{layout.BLOCK_WORDS}Q").unpack
OPEN_CALLS = tuple(layout.CALL_INDEX[name] for name in ("open", "openat", "openat2", "creat"))
FSYNC_CALLS = tuple(layout.CALL_INDEX[name] for name in ("fsync", "fdatasync"))
CONNECT_CALLS = (layout.CALL_INDEX["connect"],)
CALLS, ERRORS, NS = range(layout.CALL_WORDS)
PLACES = range(0, layout.CALLS * layout.CALL_WORDS, layout.CALL_WORDS)
EXACT_WITHIN_NS = 100_000


class CallStats(NamedTuple):
    """One system call: how often, how often it failed, kernel time (None: not timed)."""

    name: str
    calls: int
    errors: int
    ns: int | None


class KernelStats(StatsBlock):
    """What the kernel did for one request.

    While the request runs the attributes are live: each access reads the counters as they are
    now. ``finish`` of the tracer, or ``mark``, freezes them; from then on they describe the time
    from the first step to the last body message, and ``background`` what came after it.

    Units are in the names; an attribute that the backend in use cannot measure is None, never 0.
    Reading costs no system call. May be read from any thread.
    """

    __slots__ = ()

    # ---- time on the event loop's thread ----------------------------------------

    @property
    def wall_ns(self) -> int | None:
        """From the first step to the last body message."""
        if not self._measures.ledger:
            return None
        return self._between_words(layout.START_NS, layout.END_NS)

    @property
    def cpu_ns(self) -> int | None:
        """On CPU while this request was current: its steps less run queue and blocked."""
        return self._on_cpu(layout.RUN_NS, 0)

    @property
    def run_queue_ns(self) -> int | None:
        """Runnable, waiting for a CPU."""
        return self._bank(0, layout.RUN_QUEUE_NS)

    @property
    def blocked_ns(self) -> int | None:
        """Off CPU while current, and not for want of a CPU."""
        return self._blocked_ns(0)

    @property
    def blocked_by(self) -> dict[str, int] | None:
        """``blocked_ns`` by cause: other disk net lock sleep pipe poll fault child."""
        return self._blocked_by(0)

    @property
    def loop_wait_ns(self) -> int | None:
        """Ready to run while something else held the event loop: the part that is certain."""
        return self._of_loop(layout.LOOP_WAIT_MIN_NS)

    @property
    def loop_wait_max_ns(self) -> int | None:
        """The most that ``loop_wait_ns`` can have been; equal when it is exact."""
        return self._of_loop(layout.LOOP_WAIT_MAX_NS)

    @property
    def loop_wait_exact(self) -> bool | None:
        """Whether the two bounds of the loop wait agree within 100 us or 1%."""
        low, high = self.loop_wait_ns, self.loop_wait_max_ns
        if low is None or high is None:
            return None
        return high - low <= max(EXACT_WITHIN_NS, high // 100)

    @property
    def loop_block_max_ns(self) -> int | None:
        """The longest step in which this request held the event loop."""
        return self._of_loop(layout.LOOP_BLOCK_MAX_NS)

    @property
    def nested_ns(self) -> int | None:
        """Inside requests that this one made in process."""
        return self._ledger(layout.NESTED_NS)

    @property
    def suspended_ns(self) -> int | None:
        """Awaiting, with nothing ready."""
        gap = self._ledger(layout.GAP_NS)
        return None if gap is None else gap - (self.loop_wait_ns or 0)

    # ---- threads that worked for the request ------------------------------------

    @property
    def threads(self) -> int | None:
        """How many other threads worked for the request."""
        return self._ledger(layout.THREADS_USED)

    @property
    def thread_ns(self) -> int | None:
        """How long they did, summed."""
        return self._ledger(layout.THREAD_NS)

    @property
    def thread_cpu_ns(self) -> int | None:
        """Their time on CPU."""
        return self._on_cpu(layout.THREAD_NS, 1)

    @property
    def thread_run_queue_ns(self) -> int | None:
        """Their time runnable, waiting for a CPU."""
        return self._bank(1, layout.RUN_QUEUE_NS)

    @property
    def thread_blocked_ns(self) -> int | None:
        """Their time blocked."""
        return self._blocked_ns(1)

    @property
    def thread_blocked_by(self) -> dict[str, int] | None:
        """``thread_blocked_ns`` by cause."""
        return self._blocked_by(1)

    @property
    def detached(self) -> int | None:
        """Tasks and threads that still ran when the request ended; not charged to it since."""
        return self._ledger(layout.DETACHED)

    # ---- system calls -----------------------------------------------------------

    @property
    def syscalls(self) -> int | None:
        """System calls made."""
        return self._sum_calls(CALLS)

    @property
    def syscall_errors(self) -> int | None:
        """Those that failed."""
        return self._sum_calls(ERRORS)

    @property
    def syscall_ns(self) -> int | None:
        """Time from entry to exit, blocked time included; None in the mode ``count``."""
        return self._sum_calls(NS) if self._measures.call_times else None

    @property
    def top_syscalls(self) -> list[CallStats] | None:
        """Each system call made, the one that took longest first (most often, if not timed)."""
        words = self._calls()
        if words is None:
            return None
        timed = self._measures.call_times
        made = [
            CallStats(
                layout.CALL_NAMES[place // layout.CALL_WORDS],
                words[place],
                words[place + ERRORS],
                words[place + NS] if timed else None,
            )
            for place in compress(PLACES, words[:: layout.CALL_WORDS])
        ]
        return sorted(made, key=lambda call: (call.ns or 0, call.calls), reverse=True)

    @property
    def opens(self) -> int | None:
        """Files opened; attempts that failed are in ``syscall_errors``."""
        now = self._of_one_moment()
        calls, errors = now._sum_calls(CALLS, OPEN_CALLS), now._sum_calls(ERRORS, OPEN_CALLS)
        return None if calls is None or errors is None else calls - errors

    @property
    def fsyncs(self) -> int | None:
        """Calls of fsync and fdatasync."""
        return self._sum_calls(CALLS, FSYNC_CALLS)

    @property
    def fsync_ns(self) -> int | None:
        """Time in them."""
        return self._sum_calls(NS, FSYNC_CALLS) if self._measures.call_times else None

    @property
    def connects(self) -> int | None:
        """Calls of connect, to any kind of address."""
        return self._sum_calls(CALLS, CONNECT_CALLS)

    @property
    def execs(self) -> int | None:
        """Programs started by its child processes."""
        return self._if(self._measures.processes, layout.EXECS)

    @property
    def forks(self) -> int | None:
        """Child processes made (not threads)."""
        return self._if(self._measures.processes, layout.FORKS)

    # ---- bytes, disk, network, memory --------------------------------------------

    @property
    def read_bytes(self) -> int | None:
        """Bytes moved by read-like calls on anything but sockets."""
        return self._if(self._measures.files, layout.READ_BYTES)

    @property
    def write_bytes(self) -> int | None:
        """Bytes moved by write-like calls on anything but sockets."""
        return self._if(self._measures.files, layout.WRITE_BYTES)

    @property
    def net_rx_bytes(self) -> int | None:
        """Bytes received on sockets of any kind."""
        return self._if(self._measures.net, layout.NET_RX_BYTES)

    @property
    def net_tx_bytes(self) -> int | None:
        """Bytes sent on sockets of any kind."""
        return self._if(self._measures.net, layout.NET_TX_BYTES)

    @property
    def tcp_retransmits(self) -> int | None:
        """Segments sent again on TCP sockets that this request used last."""
        return self._if(self._measures.retransmits, layout.TCP_RETRANSMITS)

    @property
    def disk_reads(self) -> int | None:
        """Block I/O requests to read that were queued while current."""
        return self._if(self._measures.block, layout.DISK_READS)

    @property
    def disk_writes(self) -> int | None:
        """Block I/O requests to write that were queued while current."""
        return self._if(self._measures.block, layout.DISK_WRITES)

    @property
    def disk_read_bytes(self) -> int | None:
        """Their bytes read from block devices."""
        return self._if(self._measures.disk_bytes, layout.DISK_READ_BYTES)

    @property
    def disk_write_bytes(self) -> int | None:
        """Their bytes written to block devices (procfs: dirtied pages)."""
        return self._if(self._measures.disk_bytes, layout.DISK_WRITE_BYTES)

    @property
    def disk_ns(self) -> int | None:
        """Time from queue to completion of those requests, summed; they overlap."""
        return self._if(self._measures.block, layout.DISK_NS)

    @property
    def minor_faults(self) -> int | None:
        """Page faults that waited for nothing (group ``faults``)."""
        faults, major = self._both(layout.FAULTS, self._measures.faults), self.major_faults
        return None if faults is None or major is None else max(0, faults - major)

    @property
    def major_faults(self) -> int | None:
        """Page faults that waited for a disk."""
        return self._both(layout.MAJOR_FAULTS)

    @property
    def ctx_voluntary(self) -> int | None:
        """Context switches because a thread blocked."""
        return self._both(layout.CTX_VOLUNTARY)

    @property
    def ctx_involuntary(self) -> int | None:
        """Context switches because a thread was preempted or yielded."""
        return self._both(layout.CTX_INVOLUNTARY)

    def as_dict(self) -> dict[str, Any]:
        """Return every attribute by name, as of one moment."""
        moment = _Moment(None, self._measures)
        moment.decode(self.block(), self._phase)
        return dict(zip(FIELDS, _ALL(moment), strict=True))

    def __repr__(self) -> str:
        if not self._measures.ledger:
            return f"<KernelStats backend={self.backend}>"
        shown = ("wall_ns", "cpu_ns", "run_queue_ns", "blocked_ns", "loop_wait_ns", "syscalls")
        told = " ".join(f"{name}={getattr(self, name)}" for name in shown)
        return f"<KernelStats {self.phase} {told} attribution={self.attribution}>"


class _Moment(KernelStats):
    """The same of one block, decoded once: who asks for everything asks for much of it often."""

    __slots__ = ("_by_call", "_is_charged", "_words")

    def decode(self, block: bytes, phase: str) -> None:
        """Describe a block from now on."""
        self._block = block
        self._phase = phase
        self._words = BLOCK(block)
        self._is_charged = super()._charged()
        self._by_call = super()._calls()

    def _word(self, index: int) -> int:
        word: int = self._words[index]
        return word

    def _charged(self) -> bool:
        return self._is_charged

    def _calls(self) -> tuple[int, ...] | None:
        return self._by_call


FIELDS = (
    *("wall_ns", "cpu_ns", "run_queue_ns", "blocked_ns", "blocked_by"),
    *("loop_wait_ns", "loop_wait_max_ns", "loop_wait_exact", "loop_block_max_ns"),
    *("suspended_ns", "nested_ns"),
    *("syscalls", "syscall_ns", "syscall_errors", "top_syscalls"),
    *("read_bytes", "write_bytes", "net_rx_bytes", "net_tx_bytes"),
    *("opens", "fsyncs", "fsync_ns", "execs", "forks", "connects"),
    *("disk_reads", "disk_writes", "disk_read_bytes", "disk_write_bytes", "disk_ns"),
    *("tcp_retransmits", "minor_faults", "major_faults", "ctx_voluntary", "ctx_involuntary"),
    *("threads", "thread_ns", "thread_cpu_ns", "thread_run_queue_ns", "thread_blocked_ns"),
    *("thread_blocked_by", "detached", "phase", "backend", "attribution"),
)
_ALL = attrgetter(*FIELDS)
