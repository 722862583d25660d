"""tests/probes/rings.bpf.c as an object: so many records of these kinds into a ring, now."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.objects import compile_object
from kerneltrace_core._native import lib
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.btf.layout import ObjectLayout
from kerneltrace_core.events.binding import BoundEvent, bind
from kerneltrace_core.events.engine import KernelEvent

SAMPLE, OTHER, UNKNOWN, MALFORMED, DISCARDED = range(5)
KINDS = 5
MOST = 512  # records in one run of the program


class RingProgram:
    """Loaded, attached to nothing: its programs run when a test says so."""

    def __init__(self, ring_bytes: int = 1 << 20) -> None:
        path = compile_object("rings")
        self.layout = ObjectLayout.from_elf(path.read_bytes())
        self.object = BpfObject(path.read_bytes(), "rings")
        self.object.resize_map("events", ring_bytes)
        self.object.load()
        self.ring_fd = self.object.map_fd("events")
        self.perf_fd = self.object.map_fd("perf_events")
        self._programs = {
            name: self.object.program_fd(name) for name in ("produce", "produce_perf")
        }
        self._numbers = mmap.mmap(
            self.object.map_fd(".bss"), mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ
        )

    def bind(
        self, name: str = "sample", tag: int = 1, *, perf: bool = False
    ) -> BoundEvent[KernelEvent]:
        """Return the class and the selector of a struct, told apart by its field ``type``."""
        return bind(name, self.layout, where=("type", tag), perf=perf)

    def produce(self, count: int, *kinds: int, program: str = "produce") -> None:
        """Send so many records, of these kinds in turn (at most 16; none: samples)."""
        kinds = kinds or (SAMPLE,)
        assert 16 % len(kinds) == 0, "the pattern is repeated in 16 nibbles"
        pattern = sum(kind << 4 * place for place, kind in enumerate(kinds * (16 // len(kinds))))
        while count > 0:
            now = min(count, MOST)
            context = bytearray(struct.pack("=12Q", now, pattern, *[0] * 10))
            lib.run_program(self._programs[program], context, f"run {program}")
            count -= now

    def _by_kind(self, name: str) -> list[int]:
        place = self.layout.variables[name]
        return list(struct.unpack_from(f"={KINDS}Q", self._numbers, place.offset))

    @property
    def sent(self) -> list[int]:
        """How many records there was space for, by kind."""
        return self._by_kind("sent")

    @property
    def lost(self) -> list[int]:
        """How many records there was no space for, by kind."""
        return self._by_kind("lost")

    def close(self) -> None:
        self._numbers.close()
        self.object.close()

    @contextmanager
    def producer(self, count: int, *kinds: int, pause: float = 0) -> Iterator[int]:
        """Fork a process that sends so many batches of 64 records; yields its pid, and ends it."""
        child = os.fork()
        if not child:
            try:
                for _ in range(count):
                    self.produce(64, *kinds)
                    time.sleep(pause)
            finally:
                os._exit(0)
        try:
            yield child
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
