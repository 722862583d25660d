"""RequestTracer: the one tracer of a process, from start to stop."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.requests import engine, layout, readiness
from kerneltrace_core.requests.backends import Backend, open_backend
from kerneltrace_core.requests.handover import Handover
from kerneltrace_core.requests.measures import OFF, Measures
from kerneltrace_core.requests.options import TracerOptions
from kerneltrace_core.requests.stats import KernelStats
from kerneltrace_core.requests.tasks import LoopTasks
from kerneltrace_core.requests.threads import ThreadSeats
from kerneltrace_core.requests.triosteps import TrioTasks

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RequestTracer"]

logger = logging.getLogger("kerneltrace")

Stats = TypeVar("Stats", bound=KernelStats)

FORK_WAIT_S = 1.0
DROP_WAIT_MS = 2000
_forking = threading.local()  # the tracer whose lock this thread holds across its fork
LEDGER_WORDS = layout.BLOCK_WORDS - layout.SLOT_WORDS


class RequestTracer:
    """Traces the requests of this process.

    A process has one (``shared``): a thread works for one request at a time, whoever asks. Nothing
    starts before ``start``; a forked child has to start its own, and until then traces nothing
    and leaves its parent's alone. ``start`` and ``stop`` may come from any thread; ``open`` and
    ``finish`` are called by the integration where the request runs.
    """

    _shared: ClassVar[RequestTracer | None] = None
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()
    _watching_forks: ClassVar[bool] = False

    def __init__(self, options: TracerOptions) -> None:
        self.options = options
        self.ready = False
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._started = False
        self._starting = False
        self._complained = False
        self._started_ns = 0
        self._backend: Backend | None = None
        self._region: engine.Region | None = None
        self._seats: ThreadSeats | None = None
        self._measures: Measures = OFF
        self._measures_off_loop: Measures = OFF
        self._trio = TrioTasks()
        self._tasks = LoopTasks(self._adopt_trio)
        # Have child tasks of the running event loop charged to their request. Called at each
        # request, on the loop's thread, where a method around it would cost as much again.
        self.adopt_loop: Callable[[], None] = self._tasks.adopt_running
        self._handover = Handover(self._tasks.adopt)

    @classmethod
    def shared(cls, options: TracerOptions) -> RequestTracer:
        """Return the process's tracer; the first caller's options hold.

        A later caller with others gets the same tracer, and a WARNING says so. After ``stop`` the
        next caller's options hold.
        """
        with cls._shared_lock:
            if not cls._watching_forks:
                os.register_at_fork(
                    before=cls._before_fork,
                    after_in_parent=cls._after_fork_in_parent,
                    after_in_child=cls._after_fork,
                )
                cls._watching_forks = True
            tracer = cls._shared
            if tracer is None or (not tracer._started and not tracer._starting):
                tracer = cls._shared = tracer or cls(options)
                tracer.options = options
            elif tracer.options != options:
                logger.warning(
                    "kernel tracing already runs with %s; %s is ignored", tracer.options, options
                )
            return tracer

    @classmethod
    def _before_fork(cls) -> None:
        # Not in the middle of a start: what it has opened so far the child could not give up.
        tracer = cls._shared
        held = tracer is not None and tracer._lock.acquire(timeout=FORK_WAIT_S)
        _forking.held = tracer if held else None

    @classmethod
    def _after_fork_in_parent(cls) -> None:
        held: RequestTracer | None = getattr(_forking, "held", None)
        _forking.held = None
        if held is not None:
            held._lock.release()

    @classmethod
    def _after_fork(cls) -> None:
        cls._shared_lock = threading.Lock()
        tracer = cls._shared
        if tracer is None:
            return
        tracer.ready = False
        region, seats, backend = tracer._region, tracer._seats, tracer._backend
        tracer._handover.remove()
        tracer._reset()
        if seats is not None:
            seats.close()
        if region is not None:
            region.forget()
        if backend is not None:
            backend.abandon()

    # ---- start and stop -----------------------------------------------------------

    def start(self) -> None:
        """Load and attach, or fall back, once per process; blocks for up to 90 ms.

        Raises KernelTraceError only if the options say ``required``.
        """
        with self._lock:
            if self._started:
                return
            backend = open_backend(self.options)
            self._started = True
            if backend is None:
                return
            try:
                self._begin(backend)
            except BaseException:
                backend.close()
                self._started = False
                raise
            if self.options.drop_capabilities:
                self._drop_capabilities()
        logger.info("kernel tracing started: backend=%s probes=%s", backend.name, backend.probes())

    def _drop_capabilities(self) -> None:
        from kerneltrace_core._native import sharing

        try:
            sharing.drop_capabilities_everywhere(DROP_WAIT_MS)
        except KernelTraceError as error:
            if self.options.required:
                self.stop()
                raise
            logger.warning("%s", error)

    def _begin(self, backend: Backend) -> None:
        seats = ThreadSeats(backend.enter, backend.leave, backend.memory)
        region = engine.Region(
            backend.memory,
            backend.address,
            layout.THREADS,
            layout.SLOTS,
            layout.SLOTS_OFFSET,
            layout.SLOT_BYTES,
            seats.sit_down,
        )
        region.sampler = backend.sampler
        region.ready_at = readiness.ready_at
        seats.region = region
        self._backend, self._region, self._seats = backend, region, seats
        self._measures = backend.measures()
        self._measures_off_loop = replace(self._measures, loop=False)
        self._started_ns = time.monotonic_ns()
        self._handover.install()
        self.ready = True

    def start_soon(self) -> None:
        """Start on a thread of its own; returns at once and never raises."""
        if self._started or self._starting:
            return
        self._starting = True
        thread = threading.Thread(target=self._start_quietly, name="kerneltrace-start", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread to be had: the next request tries again
            self._starting = False
            if not self._complained:
                self._complained = True
                logger.warning("start kernel tracing: %s; trying again with each request", error)

    def _start_quietly(self) -> None:
        try:
            self.start()
        except KernelTraceError as error:
            # Required, but nobody waits here: an integration that can refuse to start calls start.
            logger.error("kernel tracing did not start: %s", error)  # noqa: TRY400 - no traceback
        finally:
            self._starting = False

    def stop(self) -> None:
        """Detach everything and undo every patch; open requests keep what they counted so far."""
        with self._lock:
            if not self._started:
                return
            self.ready = False
            self._started = False
            backend, seats = self._backend, self._seats
            self._backend = self._region = self._seats = None
            self._measures = self._measures_off_loop = OFF
            try:
                self._handover.remove()
                self._tasks.release()
                if "trio" in sys.modules:
                    self._trio.release()
            finally:
                # Whatever fails above, nothing stays attached.
                if seats is not None:
                    seats.close()
                if backend is not None:
                    backend.close()

    # ---- requests -------------------------------------------------------------------

    def _adopt_trio(self) -> None:
        if "trio" in sys.modules:
            self._trio.adopt()

    def open(
        self,
        kind: type[Stats] = KernelStats,  # type: ignore[assignment]
        *,
        loop: bool = True,
    ) -> Stats:
        """Begin a request: its stats, of a class of the caller's, are live until ``finish``.

        ``loop=False``: it has a thread to itself, so that what concerns an event loop is None.
        When every slot is taken the request runs as ever and its stats say attribution "none".
        """
        region = self._region
        if region is None:
            return kind.off()
        return kind(region.open(), self._measures if loop else self._measures_off_loop)

    # End a request; a second call does nothing.
    finish = staticmethod(KernelStats.finish)

    # ---- what belongs to no request ---------------------------------------------------

    def unattributed(self) -> KernelStats:
        """Return what happened on registered threads while they worked for nobody."""
        return self._totals(layout.SLOT_UNATTRIBUTED, bytes(layout.SLOT_BYTES))

    def late(self) -> KernelStats:
        """Return what happened for requests that had ended."""
        region = self._region
        return self._totals(
            layout.SLOT_LATE, region.late() if region is not None else bytes(layout.SLOT_BYTES)
        )

    def _totals(self, slot: int, more: bytes) -> KernelStats:
        backend = self._backend
        if backend is None:
            return KernelStats.off()
        start = layout.SLOTS_OFFSET + slot * layout.SLOT_BYTES
        words = memoryview(bytes(backend.memory[start : start + layout.SLOT_BYTES])).cast("Q")
        ledger = [0] * LEDGER_WORDS
        ledger[layout.VALUE - layout.SLOT_WORDS] = 1 << 63  # charged, though no request
        summed = [a + b for a, b in zip(words, memoryview(more).cast("Q"), strict=True)]
        block = b"".join(word.to_bytes(8, "little") for word in (*summed, *ledger))
        return KernelStats.of_block(block, self._measures)

    # ---- how it goes --------------------------------------------------------------------

    @property
    def backend(self) -> str:
        """``bpf``, ``procfs`` or ``off``."""
        return self._backend.name if self._backend is not None else "off"

    def health(self) -> dict[str, Any]:
        """Say what runs, in data.

        ``status``: ``ok``; ``degraded``: not BPF, not every group, or threads unseen; ``off``.
        """
        backend, region, seats = self._backend, self._region, self._seats
        if backend is None or region is None or seats is None:
            return {"status": "off", "backend": "off", "probes": {}}
        probes = backend.probes()
        attached = backend.name == "bpf" and set(probes.values()) == {"attached"}
        whole = attached and not seats.refused
        return {
            "status": "ok" if whole else "degraded",
            "backend": backend.name,
            "probes": probes,
            "kernel_side": backend.side(),
            "engine": engine.IMPLEMENTATION,
            "requests_open": region.slots_open,
            "requests_unattributed": region.slots_exhausted,
            "threads_refused": seats.refused,
            "uptime_s": (time.monotonic_ns() - self._started_ns) // 1_000_000_000,
        }
