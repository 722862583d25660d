"""What the kernel says about a loaded program, and whether it counts runs: one call each."""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from kerneltrace_core._native.lib import _reason, ffi, lib
from kerneltrace_core.errors import LoadError, PrivilegeError, UnsupportedError

__all__ = ["RawProgramInfo", "enable_stats", "program_info"]

# struct bpf_prog_info of include/uapi/linux/bpf.h, to verified_insns; what an older kernel does
# not know stays zero. Not the C struct: headers older than Linux 5.16 lack its end.
INFO = struct.Struct("=II8sIIQQQIIQ16sIIQQIIQQIIQIIQQIIIIQQQQI4x")
RUN_TIME = 0  # BPF_STATS_RUN_TIME


class RawProgramInfo(NamedTuple):
    """The members of struct bpf_prog_info that are no addresses; see there."""

    type: int
    id: int
    tag: bytes
    jited_bytes: int
    instruction_bytes: int
    loaded_ns: int
    uid: int
    name: str
    run_time_ns: int
    run_count: int
    recursion_misses: int
    verified_instructions: int


def program_info(fd: int) -> RawProgramInfo:
    """Describe a loaded program. The descriptor must be one of a program. Thread-safe."""
    found = bytearray(INFO.size)
    size = ffi.new("uint32_t *", INFO.size)
    code = lib.bpf_obj_get_info_by_fd(fd, ffi.from_buffer(found), size)
    if code < 0:
        raise LoadError(f"describe program: {_reason(-code)}", errno=-code)
    told = INFO.unpack(found)
    kind, number, tag, jited_bytes, instruction_bytes = told[:5]
    loaded_ns, uid = told[7:9]
    return RawProgramInfo(
        kind, number, tag, jited_bytes, instruction_bytes, loaded_ns, uid,
        told[11].rstrip(b"\0").decode("utf-8", "replace"), *told[-4:],
    )  # fmt: skip


def enable_stats() -> int:
    """Let the kernel count runs and run time of all programs while the descriptor is open."""
    fd: int = lib.bpf_enable_stats(RUN_TIME)
    if fd >= 0:
        return fd
    if -fd == errno.EPERM:
        raise PrivilegeError(
            "count runs of BPF programs: CAP_SYS_ADMIN missing (give it CAP_SYS_ADMIN, or have "
            "root set the sysctl kernel.bpf_stats_enabled=1)",
            errno=errno.EPERM,
        )
    raise UnsupportedError(
        f"count runs of BPF programs: {_reason(-fd)} (needs Linux 5.8; before, set the sysctl "
        "kernel.bpf_stats_enabled=1)",
        errno=-fd,
    )
