"""What the kernel's refusals mean to who uses a map."""

from __future__ import annotations

import errno as errno_names
import os

from kerneltrace_core.errors import (
    KernelTraceError,
    MapError,
    MapFullError,
    PrivilegeError,
    UnsupportedError,
)
from kerneltrace_core.maps.info import MapInfo
from kerneltrace_core.maps.kinds import MapType

__all__ = ["explain", "type_name"]

NOT_THERE = (errno_names.EOPNOTSUPP, errno_names.ENOSYS)
REFUSED = (errno_names.EPERM, errno_names.EACCES)
# What else helps where a map is full.
WITHOUT_ROOM: dict[MapType | int, str] = {
    MapType.HASH: ", or let what is least used go: type lru_hash",
    MapType.PERCPU_HASH: ", or let what is least used go: type lru_percpu_hash",
    MapType.QUEUE: ", or let the oldest go: push(value, overwrite=True)",
    MapType.STACK: ", or let the oldest go: push(value, overwrite=True)",
}


def type_name(number: MapType | int) -> str:
    """Return the kernel's word for a type of map: ``hash``, ``percpu_array``."""
    return number.name.lower() if isinstance(number, MapType) else f"type {number}"


def explain(act: str, error: OSError, name: str, info: MapInfo) -> KernelTraceError:
    """Return the error to raise for an errno; ``act`` says what was tried, and with what.

    ``info``: with ``frozen`` as it is now, where that can be read.
    """
    code = error.errno or 0
    # A trie says that there is no space.
    if code == errno_names.E2BIG or (code == errno_names.ENOSPC and info.type == MapType.LPM_TRIE):
        return MapFullError(
            f"{act}: it is full, max_entries is {info.max_entries} (delete entries, or make room: "
            f"Session(..., map_sizes={{{name!r}: {info.max_entries * 2}}})"
            f"{WITHOUT_ROOM.get(info.type, '')})",
            errno=code,
        )
    if code in REFUSED:
        return _refused(act, code, info)
    if code in NOT_THERE:
        return UnsupportedError(
            f"{act}: this kernel cannot do so with a map of type {type_name(info.type)}", errno=code
        )
    named = errno_names.errorcode.get(code, str(code))
    return MapError(f"{act}: {os.strerror(code)} ({named})", errno=code)


def _refused(act: str, code: int, info: MapInfo) -> KernelTraceError:
    if info.frozen:
        return MapError(f"{act}: it is frozen already, only programs may change it", errno=code)
    if info.access in ("read", "write"):
        past = {"read": "read", "write": "written"}[info.access]
        return MapError(f"{act}: it is open to be {past} only", errno=code)
    # Not at the top: nearly never needed.
    from kerneltrace_core.kernel.privileges import explain_refusal, read_privileges

    why = explain_refusal(code, read_privileges(), ["cap_bpf"])
    remedy = f" ({why.remedy})" if why.remedy else ""
    return PrivilegeError(f"{act}: {why.reason}{remedy}", errno=code)
