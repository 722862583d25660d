"""What sharing programs among processes needs of the kernel, one call per function.

Thread-safe; the GIL is released.
"""

from __future__ import annotations

import errno as errno_names
import os
from typing import Any, NoReturn

from kerneltrace_core._native.lib import _checked, ffi, lib
from kerneltrace_core.errors import KernelTraceError

__all__ = [
    "PROCESSES",
    "REQUESTS_SHA256",
    "bar_capabilities",
    "drop_capabilities",
    "drop_capabilities_everywhere",
    "exchange",
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

# Of one exchange, by a signal: each costs a millisecond at most, and a timer may come again.
INTERRUPTIONS = 100
# cffi makes what it wraps when it is first used: here, and not in a child that has just been
# forked to join, where each costs some twenty pages.
ANSWER = ffi.typeof("struct kt_answer *")
ffi.sizeof(ANSWER.item)
for _name in ("kt_ask", "kt_region_fits", "kt_program_run", "kt_region_map"):
    getattr(lib, _name)
# Of the request programs that were built with this extension.
REQUESTS_SHA256: str = ffi.string(lib.kt_requests_sha256).decode()
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


def exchange(
    address: str, request: bytes, uid: int, seconds: float
) -> tuple[bytes, list[int], bool]:
    """Ask a Unix socket of packets, which root or ``uid`` has to serve; ``@NAME``: an abstract one.

    Returns its packet, descriptors, which the caller closes, and whether some were lost. Waits for
    ``seconds`` at most for each of three steps. Raises KernelTraceError if another serves it;
    OSError, TimeoutError among it.
    """
    path = address.encode(errors="surrogateescape")
    answer = ffi.new(ANSWER)
    limit_ms = max(1, int(1000 * seconds))
    try:
        for _ in range(INTERRUPTIONS):
            code = lib.kt_ask(path, len(path), uid, request, len(request), limit_ms, answer)
            if code != -errno_names.EINTR:
                break
        if code < 0:
            _refuse_answer(code, address, answer, uid)
        fds = ffi.unpack(answer.fds, answer.fd_count)
        return ffi.unpack(answer.packet, answer.length), fds, bool(answer.truncated)
    except BaseException:
        for fd in ffi.unpack(answer.fds, answer.fd_count):
            os.close(fd)
        raise


def _refuse_answer(code: int, address: str, answer: Any, uid: int) -> NoReturn:
    if code == -errno_names.EACCES and answer.uid not in (-1, 0, uid):
        raise KernelTraceError(f"ask {address}: it is served by uid {answer.uid}, not by this user")
    raise OSError(-code, os.strerror(-code), address)


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
