"""Ring and perf buffers through the shim: one C call each, without the interpreter's lock.

Not thread-safe for one buffer. Memory belongs to the caller: a buffer that was unmapped must
not be drained again.
"""

from __future__ import annotations

import errno as errno_names
import os
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

from kerneltrace_core._native.lib import ffi, lib
from kerneltrace_core.errors import PrivilegeError, RingError

# C structs and pointers, opaque here.
Ring = Any
Perf = Any
Wanted = Any
Result = Any
Scratch = Any

RINGBUF = 27  # enum bpf_map_type of linux/bpf.h
PERF_EVENT_ARRAY = 4


def _refused(act: str, code: int) -> NoReturn:
    if code == errno_names.EBADMSG:
        raise RingError(f"{act}: it holds what no kernel writes", errno=code)
    error = PrivilegeError if code in (errno_names.EPERM, errno_names.EACCES) else RingError
    reason = f"{os.strerror(code)} ({errno_names.errorcode.get(code, code)})"
    raise error(f"{act}: {reason}", errno=code)


def new_result() -> Result:
    """Return the struct in which drains say what they took; see struct kt_drained."""
    return ffi.new("struct kt_drained *")


def new_scratch(size_bytes: int) -> Scratch:
    """Return memory for frames, aligned, not zeroed."""
    return ffi.new_allocator(should_clear_after_alloc=False)("char[]", size_bytes)


class Lender:
    """Lend memory as views, and take it back when the last view of it is gone. Thread-safe.

    Fresh memory costs a page fault for each of its pages, more than filling it: who goes through
    one batch after the other gets the same pages again. No more than ``kept`` wait.
    """

    def __init__(self, kept: int = 2) -> None:
        self._kept = kept
        self._spare: list[Scratch] = []
        # By identity: cffi's buffers have no hash, nor have references to them.
        self._lent: dict[int, weakref.ref[Any]] = {}

    def take(self, size_bytes: int) -> Scratch:
        """Return memory of this size or more, aligned, not zeroed."""
        try:
            spare = self._spare.pop()
        except IndexError:
            return new_scratch(size_bytes)
        return spare if len(spare) >= size_bytes else new_scratch(size_bytes)

    def view(self, scratch: Scratch, size_bytes: int) -> memoryview:
        """Return the first bytes themselves; the memory is the view's as long as it lives."""
        buffer = ffi.buffer(scratch, size_bytes)

        def back(lent: weakref.ref[Any]) -> None:
            self._lent.pop(id(lent), None)
            if len(self._spare) < self._kept:
                self._spare.append(scratch)

        lent = weakref.ref(buffer, back)
        self._lent[id(lent)] = lent
        return memoryview(buffer).cast("B")

    def close(self) -> None:
        """Keep nothing any more; what is lent stays good."""
        self._kept = 0
        self._spare.clear()


def copy_out(scratch: Scratch, size_bytes: int) -> bytes:
    """Return the first bytes of a scratch."""
    return bytes(ffi.buffer(scratch, size_bytes))


def map_shape(fd: int, act: str) -> tuple[int, int]:
    """Return type and max_entries of a map."""
    shape = ffi.new("uint32_t[2]")
    code = lib.kt_map_shape(fd, shape, shape + 1)
    if code < 0:
        _refused(act, -code)
    return int(shape[0]), int(shape[1])


def wanted(size: int, tag_offset: int, tag_size: int, tags: Sequence[int]) -> Wanted:
    """Describe the records of a type; tag_offset is negative if they carry no tag."""
    described = ffi.new("struct kt_wanted *")
    values = ffi.new("uint64_t[]", list(tags) or [0])
    described.size, described.tag_offset, described.tag_size = size, tag_offset, tag_size
    described.tags, described.tags_count = values, len(tags)
    return described, values  # the tags live as long as their description


def select_frames(frames: bytes, wanted: Wanted, exact: bool) -> bytes:
    """Return the frames that are wanted."""
    out = ffi.new_allocator(should_clear_after_alloc=False)("char[]", len(frames))
    size = lib.kt_frames_select(ffi.from_buffer(frames), len(frames), wanted[0], exact, out)
    return bytes(ffi.buffer(out, size))


# ---- ring buffers -------------------------------------------------------------


def map_ring(fd: int, name: str) -> Ring:
    """Map a ring buffer's pages; a forked child does not have them. Forgetting it unmaps it.

    Least kernel 5.8. Raises RingError, PrivilegeError.
    """
    ring = ffi.gc(ffi.new("struct kt_ring *"), lib.kt_ring_free)  # as held.py has it
    code = lib.kt_ring_map(fd, ring)
    if code < 0:
        _refused(f"map ring {name}", -code)
    return ring


def memory_ring(positions: bytearray, data: bytearray) -> Ring:
    """Return a ring over plain memory: consumer and producer positions, and the data twice."""
    ring = ffi.new("struct kt_ring *")
    both = ffi.cast("uint64_t *", ffi.from_buffer(positions))
    ring.consumer, ring.producer = both, both + 1
    ring.data, ring.size = ffi.cast("uint8_t *", ffi.from_buffer(data)), len(data) // 2
    return ring


def unmap_ring(ring: Ring, name: str) -> None:
    """Give the pages back; may be repeated."""
    code = lib.kt_ring_unmap(ring)
    if code < 0:
        _refused(f"unmap ring {name}", -code)


def drain_ring(
    ring: Ring, scratch: Scratch, limit_bytes: int, limit_records: int, result: Result, name: str
) -> None:
    """Take records as frames into a scratch of at least limit_bytes."""
    code = lib.kt_ring_drain(ring, scratch, limit_bytes, limit_records, result)
    if code < 0:
        _refused(f"drain ring {name}", -code)


def drain_ring_strided(
    ring: Ring, wanted: Wanted, out: Scratch, limit_records: int, result: Result, name: str
) -> None:
    """Take records of one type, without headers, into out: limit_records times their size."""
    code = lib.kt_ring_drain_strided(ring, wanted[0], out, limit_records, result)
    if code < 0:
        _refused(f"drain ring {name}", -code)


def pending_in_ring(ring: Ring) -> int:
    """Return the bytes between the positions."""
    return int(lib.kt_ring_pending(ring))


def spin_on_ring(ring: Ring, nanoseconds: int) -> bool:
    """Look for a record for so long, on a CPU."""
    return bool(lib.kt_ring_spin(ring, nanoseconds))


# ---- perf buffers -------------------------------------------------------------


def open_perf(map_fd: int, cpu: int, pages: int, name: str, *, sized: bool) -> Perf:
    """Open one CPU's part of a perf buffer. Forgetting it closes it.

    ``sized``: samples begin with struct kt_header, and are as long as that says.
    Raises RingError, PrivilegeError.
    """
    perf = ffi.gc(
        ffi.new("struct kt_perf_ring *", {"fd": -1, "sized": sized}), lib.kt_perf_ring_free
    )
    code = lib.kt_perf_ring_open(map_fd, cpu, pages, perf)
    if code < 0:
        _refused(f"open perf buffer {name} of CPU {cpu}", -code)
    return perf


def memory_perf(positions: bytearray, data: bytearray, cpu: int, *, sized: bool) -> Perf:
    """Return a CPU's part over plain memory: head and tail positions, and the data."""
    perf = ffi.new("struct kt_perf_ring *")
    both = ffi.cast("uint64_t *", ffi.from_buffer(positions))
    perf.head, perf.tail = both, both + 1
    perf.data, perf.size = ffi.cast("uint8_t *", ffi.from_buffer(data)), len(data)
    perf.cpu, perf.fd, perf.sized = cpu, -1, sized
    return perf


def perf_fd(perf: Perf) -> int:
    """Return the descriptor that becomes readable."""
    return int(perf.fd)


def close_perf(perf: Perf, name: str) -> None:
    """Give the pages and the descriptor back; of a forked child the descriptor."""
    code = lib.kt_perf_ring_close(perf)
    if code < 0:
        _refused(f"close perf buffer {name}", -code)


def drain_perf(
    perf: Perf,
    scratch: Scratch,
    limit_bytes: int,
    limit_records: int,
    result: Result,
    name: str,
) -> None:
    """Take samples as frames into a scratch of at least limit_bytes."""
    code = lib.kt_perf_ring_drain(perf, scratch, limit_bytes, limit_records, result)
    if code < 0:
        _refused(f"drain perf buffer {name}", -code)


def pending_in_perf(perf: Perf) -> int:
    """Return the bytes between the positions."""
    return int(lib.kt_perf_ring_pending(perf))
