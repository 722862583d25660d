"""What sharing programs among processes needs of the kernel, one call per function.

Thread-safe; the GIL is released.
"""

from __future__ import annotations

import errno as errno_names
import os

from kerneltrace_core._native.lib import _checked, ffi, lib
from kerneltrace_core.errors import KernelTraceError

__all__ = [
    "PROCESSES",
    "bar_capabilities",
    "drop_capabilities",
    "drop_capabilities_everywhere",
    "member_bytes",
    "open_pinned",
    "pin",
    "place_maps",
    "read_element",
    "region_fits",
    "registration_bytes",
    "write_element",
    "zero",
]

PROCESSES: int = lib.KT_PROCESSES
member_bytes: int = lib.kt_member_bytes
registration_bytes: int = lib.kt_registration_bytes


def place_maps(outer_fd: int, first: int, inner_fds: list[int]) -> None:
    """Put maps into a map of maps, from index ``first`` on. Waits for RCU once, 8 to 21 ms."""
    descriptors = ffi.new("int[]", inner_fds)
    _checked("place regions", lib.kt_map_place(outer_fd, first, descriptors, len(inner_fds)))


def read_element(fd: int, index: int, size: int) -> bytes:
    """Return an element of an array map."""
    key, value = ffi.new("uint32_t *", index), bytearray(size)
    code = lib.bpf_map_lookup_elem_flags(fd, key, ffi.from_buffer(value), 0)
    _checked("read map", code)
    return bytes(value)


def write_element(fd: int, index: int, value: bytes) -> None:
    """Store an element of an array map."""
    key = ffi.new("uint32_t *", index)
    _checked("write map", lib.bpf_map_update_elem(fd, key, value, 0))


def pin(fd: int, path: str) -> None:
    """Give a BPF object a name in bpffs. Raises LoadError, PrivilegeError."""
    _checked(f"pin {path}", lib.bpf_obj_pin(fd, path.encode()))


def open_pinned(path: str) -> int:
    """Open a BPF object by its name in bpffs. Raises LoadError, PrivilegeError."""
    return _checked(f"open {path}", lib.kt_pinned_open(path.encode(), 0))


def region_fits(fd: int, size: int) -> bool:
    """Tell whether a descriptor is of a region of that size: one that can be mapped to its end."""
    return _checked("look at region", lib.kt_region_fits(fd, size)) == 1


def zero(address: int, size: int) -> None:
    """Zero memory."""
    lib.kt_zero(ffi.cast("void *", address), size)


def bar_capabilities() -> None:
    """Have no program that this thread runs get a capability, not even as uid 0; if it may."""
    lib.kt_capabilities_bar()


def drop_capabilities() -> None:
    """Give up every capability of the calling thread."""
    code = lib.kt_capabilities_drop()
    if code < 0:
        raise KernelTraceError(f"drop capabilities: {os.strerror(-code)}")


def drop_capabilities_everywhere(timeout_ms: int) -> None:
    """Give up every capability of every thread. Raises KernelTraceError if one keeps its own."""
    code = lib.kt_capabilities_drop_everywhere(timeout_ms)
    if code == -errno_names.ETIMEDOUT:
        raise KernelTraceError(
            "drop capabilities: a thread did not take part in time and still has its own "
            "(does it block all signals?)"
        )
    if code == -errno_names.EBUSY:
        raise KernelTraceError("drop capabilities: every real-time signal has a handler already")
    if code < 0:
        raise KernelTraceError(f"drop capabilities: {os.strerror(-code)}")
