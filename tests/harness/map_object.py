"""Load tests/probes/maps.bpf.c, or another, with its maps; run its programs here."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from harness.objects import compile_object
from kerneltrace_core._native import lib, maps
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.btf.layout import MapLayout, ObjectLayout
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.maps.calls import KernelCalls
from kerneltrace_core.maps.kinds import MapType
from kerneltrace_core.maps.maps import Maps
from kerneltrace_core.maps.opening import adopt

ARGUMENTS = struct.Struct("=12Q")
MASK = (1 << 64) - 1


class MapObject:
    """A loaded object: its maps by name, and its programs to be run."""

    def __init__(self, opened: BpfObject, loaded: Maps) -> None:
        self.object = opened
        self.maps = loaded

    def run(self, program: str, *arguments: int, cpu: int | None = None) -> None:
        """Run a raw tracepoint program on this thread, on a CPU."""
        padded = [argument & MASK for argument in arguments] + [0] * (12 - len(arguments))
        before = os.sched_getaffinity(0)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        try:
            context = bytearray(ARGUMENTS.pack(*padded))
            lib.run_program(self.object.program_fd(program), context, f"run {program}")
        finally:
            os.sched_setaffinity(0, before)

    def result(self, index: int, *, signed: bool = False) -> int:
        """Return what a program told, read without the classes under test."""
        data = maps.lookup(self.object.map_fd("results"), struct.pack("=I", index), 8)
        assert data is not None
        return int.from_bytes(data, "little", signed=signed)


def memory_for_maps() -> Support:
    """Ask for a map of a megabyte: before Linux 5.11 it counts against RLIMIT_MEMLOCK."""
    try:
        os.close(maps.create(MapType.ARRAY, "kt_probe", 4, 1 << 20, 1))
    except OSError as error:
        return Support.no(f"a map of 1 MiB: {error}")
    return Support.yes()


@functools.cache
def read(name: str) -> tuple[bytes, ObjectLayout]:
    """Return an object and its layout."""
    data = compile_object(name).read_bytes()
    return data, ObjectLayout.from_elf(data, name)


@contextmanager
def map_object(name: str = "maps") -> Iterator[MapObject]:
    """Load all of an object; nothing is attached."""
    data, layout = read(name)
    with ExitStack() as undo:
        opened = undo.enter_context(BpfObject(data, name))
        opened.load()
        loaded = Maps(opened.map_fd, layout.maps)
        undo.callback(loaded.close)
        yield MapObject(opened, loaded)


@contextmanager
def created(layout: MapLayout, inner_fd: int | None = None) -> Iterator[Any]:
    """Create a map in the kernel, without any object."""
    fd = maps.create(
        layout.type,
        layout.name,
        layout.key_size,
        layout.value_size,
        layout.max_entries,
        layout.flags,
        inner_fd,
    )
    with adopt(fd, layout.name, layout, KernelCalls()) as made:
        yield made
