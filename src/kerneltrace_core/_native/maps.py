"""Maps as Python functions: one system call each, every return code checked on its line.

Thread-safe, the GIL is released. Sizes are the caller's to know: the kernel writes as much as
the map's value has, for each possible CPU where it is per CPU. What is not there is None or
False; every other refusal is MapError with the errno, which the callers put into words.
"""

from __future__ import annotations

import errno as errno_names
import os
import re
from typing import NoReturn

from kerneltrace_core._native.lib import _reason, ffi, lib
from kerneltrace_core._native.map_records import Batch, RawInfo
from kerneltrace_core.errors import MapError

__all__ = [
    "contains",
    "create",
    "delete",
    "freeze",
    "info",
    "lookup",
    "next_key",
    "open_id",
    "open_pinned",
    "pin",
    "read_batch",
    "take",
    "update",
]

# The kernel's own, which no errno.h has: an operation that this type of map lacks.
ENOTSUPP = 524
BPF_F_RDONLY = 1 << 3


def _refused(act: str, code: int) -> NoReturn:
    if code == ENOTSUPP:
        raise MapError(f"{act}: not supported (ENOTSUPP)", errno=errno_names.EOPNOTSUPP)
    raise MapError(f"{act}: {_reason(code)}", errno=code)


def _checked(act: str, code: int) -> int:
    if code < 0:
        _refused(act, -code)
    return code


def lookup(fd: int, key: bytes | None, size: int, flags: int = 0) -> bytes | None:
    """Return the ``size`` bytes stored under a key; queues have none."""
    value = bytearray(size)
    pointer = ffi.NULL if key is None else key
    code = lib.bpf_map_lookup_elem_flags(fd, pointer, ffi.from_buffer(value), flags)
    if code == -errno_names.ENOENT:
        return None
    _checked("look up", code)
    return bytes(value)


def contains(fd: int, value: bytes) -> bool:
    """Tell whether a Bloom filter may have a value. Linux 5.16."""
    code = lib.bpf_map_lookup_elem_flags(fd, ffi.NULL, ffi.from_buffer(bytearray(value)), 0)
    if code == -errno_names.ENOENT:
        return False
    _checked("look up", code)
    return True


def update(fd: int, key: bytes | None, value: bytes, flags: int = 0) -> None:
    """Store a value; ``flags``: 0 always, 1 only if the key is new, 2 only if it is not."""
    pointer = ffi.NULL if key is None else key
    _checked("update", lib.bpf_map_update_elem(fd, pointer, value, flags))


def delete(fd: int, key: bytes) -> bool:
    """Delete a key; False if it was not there."""
    code = lib.bpf_map_delete_elem(fd, key)
    if code == -errno_names.ENOENT:
        return False
    _checked("delete", code)
    return True


def take(fd: int, key: bytes | None, size: int) -> bytes | None:
    """Return and delete in one step. Hash tables since Linux 5.14, queues since 4.20."""
    value = bytearray(size)
    pointer = ffi.NULL if key is None else key
    code = lib.bpf_map_lookup_and_delete_elem(fd, pointer, ffi.from_buffer(value))
    if code == -errno_names.ENOENT:
        return None
    _checked("take", code)
    return bytes(value)


def next_key(fd: int, key: bytes | None, size: int) -> bytes | None:
    """Return the key after another, the first after None and after one that is gone."""
    following = bytearray(size)
    pointer = ffi.NULL if key is None else key
    code = lib.bpf_map_get_next_key(fd, pointer, ffi.from_buffer(following))
    if code == -errno_names.ENOENT:
        return None
    _checked("find next key", code)
    return bytes(following)


def read_batch(
    fd: int,
    start: bytes | None,
    count: int,
    key_size: int,
    value_size: int,
    *,
    take: bool = False,
    flags: int = 0,
) -> Batch:
    """Return up to ``count`` entries from ``start`` on, and delete them if ``take``. Linux 5.6.

    ENOSPC: ask for more, a bucket of the table has so many.
    """
    keys, values = bytearray(count * key_size), bytearray(count * value_size)
    # A position is a bucket's index (u32) or a key, by the type of map.
    position = bytearray(max(key_size, 8))
    wanted = ffi.new("uint32_t *", count)
    code = lib.kt_map_batch(
        fd,
        ffi.NULL if start is None else start,
        ffi.from_buffer(position),
        ffi.from_buffer(keys),
        ffi.from_buffer(values),
        wanted,
        flags,
        take,
    )
    at_end = code == -errno_names.ENOENT
    if not at_end:
        _checked("read batch", code)
    found = min(int(wanted[0]), count)
    return Batch(
        bytes(keys[: found * key_size]),
        bytes(values[: found * value_size]),
        found,
        None if at_end else bytes(position),
    )


def info(fd: int) -> RawInfo:
    """Describe a map. The descriptor must be one of a map."""
    found = ffi.new("struct kt_map_info *")
    _checked("describe map", lib.kt_map_info(fd, found))
    return RawInfo(
        found.type,
        found.id,
        found.key_size,
        found.value_size,
        found.max_entries,
        found.flags,
        ffi.string(found.name).decode("utf-8", "replace"),
    )


def create(
    type: int,  # noqa: A002 - the kernel's own word for it
    name: str,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int = 0,
    inner_fd: int | None = None,
) -> int:
    """Create a map without BTF; returns its descriptor."""
    plan = ffi.new("struct kt_map_plan *")
    # The kernel takes letters, digits, _ and . and no more than 15 of them.
    spelled = re.sub(r"[^A-Za-z0-9_.]", "_", name)[:15]
    named = ffi.new("char[]", spelled.encode())
    plan.name, plan.type, plan.flags = named, type, flags
    plan.key_size, plan.value_size, plan.max_entries = key_size, value_size, max_entries
    plan.inner_fd = -1 if inner_fd is None else inner_fd
    return _checked("create map", lib.kt_map_create(plan))


def freeze(fd: int) -> None:
    """Forbid every later change from user space. Linux 5.2."""
    _checked("freeze map", lib.bpf_map_freeze(fd))


def pin(fd: int, path: str) -> None:
    """Give a map a name in a BPF file system."""
    _checked("pin", lib.bpf_obj_pin(fd, os.fsencode(path)))


def open_pinned(path: str, *, read_only: bool = False) -> int:
    """Open what is pinned, whatever it is; returns its descriptor."""
    flags = BPF_F_RDONLY if read_only else 0
    return _checked("open pinned", lib.kt_pinned_open(os.fsencode(path), flags))


def open_id(map_id: int) -> int:
    """Open a map by its id; returns its descriptor. Needs CAP_SYS_ADMIN."""
    return _checked("open map by id", lib.bpf_map_get_fd_by_id(map_id))
