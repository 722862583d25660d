"""A kernel behind bpf(2) that lacks what a test says, and BTF blobs made to measure."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable

from kerneltrace_core.kernel import bpfcall
from kerneltrace_core.kernel.bpfcall import BpfCall

HARDWARE = 0
TCX_INGRESS = 46
ARRAY, TASK_STORAGE, KPROBE, TRACING, SYSCALL = 2, 29, 2, 26, 31


class FakeKernel(BpfCall):
    """Give descriptors of /dev/null; refuse what the arguments name.

    ``descriptors`` holds every descriptor ever given, so that a test can see them closed.
    """

    def __init__(
        self,
        *,
        without_maps: Iterable[int] = (),
        without_programs: Iterable[int] = (),
        refuse: int = 0,
        refuse_programs: int = 0,
        refuse_maps_above: int | None = None,
        odd: int = 0,
        hardware: bool = True,
        tcx: bool = True,
        perf_links: bool = True,
        filters_by_thread: bool = False,
    ) -> None:
        self.hardware = hardware
        self.tcx = tcx
        self.perf_links = perf_links
        self.filters_by_thread = filters_by_thread
        self.without_maps = set(without_maps)
        self.without_programs = set(without_programs)
        self.refuse = refuse
        self.refuse_programs = refuse_programs
        self.refuse_maps_above = refuse_maps_above
        self.odd = odd
        self.descriptors: list[int] = []
        self.mapped: list[int] = []

    def call(self, command: int, attr: bytes) -> int:
        if self.odd:
            raise OSError(self.odd, os.strerror(self.odd))
        if command not in (0, 5, 10, 18, 28):
            raise OSError(errno.EINVAL, "Invalid argument")
        if self.refuse:
            raise OSError(self.refuse, os.strerror(self.refuse))
        if command == bpfcall.MAP_CREATE:
            self._map(attr)
        elif command == bpfcall.PROG_LOAD:
            self._program(attr)
        elif command == bpfcall.PROG_RUN:
            return 0
        elif command == bpfcall.LINK_CREATE:
            self._link(attr)
        return self._descriptor()

    def map_memory(self, descriptor: int, size: int) -> None:
        self.mapped.append(size)

    def perf_event(self, kind: int = 1, config: int = 0) -> int:
        if self.refuse:
            raise OSError(errno.EACCES, "Permission denied")
        if kind == HARDWARE and not self.hardware:
            raise OSError(errno.ENOENT, "No such file or directory")
        return self._descriptor()

    def perf_probe(self, kind: int, name: bytes) -> int:
        if self.refuse:
            raise OSError(errno.EACCES, "Permission denied")
        if name == b"/":
            raise OSError(errno.EINVAL, "Invalid argument")
        return self._descriptor()

    def _link(self, attr: bytes) -> None:
        if len(attr) == bpfcall.LINK_ATTR.size:
            is_tcx = bpfcall.LINK_ATTR.unpack(attr)[2] == TCX_INGRESS
            known, answer = (self.tcx, errno.ENODEV) if is_tcx else (self.perf_links, errno.EBADF)
            code = answer if known else errno.EINVAL
        else:
            process = bpfcall.UPROBE_MULTI_ATTR.unpack(attr)[-1]
            impossible = process == 0xFFFFFFFF
            code = errno.EINVAL if impossible and not self.filters_by_thread else errno.EBADF
        raise OSError(code, os.strerror(code))

    def _map(self, attr: bytes) -> None:
        kind, _, size = bpfcall.MAP_ATTR.unpack(attr)[:3]
        if kind in self.without_maps:
            raise OSError(errno.EINVAL, "Invalid argument")
        if self.refuse_maps_above is not None and size > self.refuse_maps_above:
            raise OSError(errno.EPERM, "Operation not permitted")

    def _program(self, attr: bytes) -> None:
        if self.refuse_programs:
            raise OSError(self.refuse_programs, "refused")
        if bpfcall.PROG_ATTR.unpack(attr)[0] in self.without_programs:
            raise OSError(errno.EINVAL, "Invalid argument")

    def _descriptor(self) -> int:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        self.descriptors.append(descriptor)
        return descriptor


def btf_with(tracepoints: Iterable[str], *, types_before: int = 0) -> bytes:
    """Build BTF with ``types_before`` structs of two members, then one typedef each."""
    strings = bytearray(b"\0")
    types = bytearray()
    for _ in range(types_before):
        types += struct.pack("=III", 0, 4 << 24 | 2, 8) + bytes(24)
    for name in tracepoints:
        types += struct.pack("=III", len(strings), 8 << 24, 0)
        strings += f"btf_trace_{name}".encode() + b"\0"
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return bytes(header + types + strings)
