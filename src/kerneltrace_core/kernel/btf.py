"""The kernel's own BTF: whether it is there, and which tracepoints it describes."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "PREEMPTIBLE_SIGN",
    "VMLINUX",
    "BtfHeader",
    "function_type_ids",
    "has_string",
    "has_tracepoint",
    "is_btf",
    "parse_header",
    "preempts_programs",
    "read_vmlinux",
    "tracepoint_names",
    "tracepoint_type_ids",
]

VMLINUX = "/sys/kernel/btf/vmlinux"
# Programs at tracepoints can be preempted from 7.0 on (a46023d5616e), which no type tells, so the
# number has to; those at system calls since 439ebd5b5708 (7.2), of which this function tells, for
# kernels of an older number that have it.
PREEMPTING_RELEASE = 7
PREEMPTIBLE_SIGN = "trace_call_bpf_faultable"

Blob = bytes | mmap.mmap

MAGIC = 0xEB9F
HEADER = struct.Struct("=HBBIIIII")
TYPEDEF = 8
FUNCTION = 12

# Words after the three of struct btf_type, by kind: (fixed, for each member).
# Documentation/bpf/btf.rst
TRAILING_WORDS = {
    1: (1, 0),  # INT
    2: (0, 0),  # PTR
    3: (3, 0),  # ARRAY
    4: (0, 3),  # STRUCT
    5: (0, 3),  # UNION
    6: (0, 2),  # ENUM
    7: (0, 0),  # FWD
    TYPEDEF: (0, 0),
    9: (0, 0),  # VOLATILE
    10: (0, 0),  # CONST
    11: (0, 0),  # RESTRICT
    FUNCTION: (0, 0),
    13: (0, 2),  # FUNC_PROTO
    14: (1, 0),  # VAR
    15: (0, 3),  # DATASEC
    16: (0, 0),  # FLOAT
    17: (1, 0),  # DECL_TAG
    18: (0, 0),  # TYPE_TAG
    19: (0, 3),  # ENUM64
}


@dataclass(frozen=True)
class BtfHeader:
    """Where the two sections of a BTF blob are, in bytes from its beginning. Immutable."""

    types_at: int
    types_bytes: int
    strings_at: int
    strings_bytes: int


def is_btf(data: Blob) -> bool:
    """Tell whether ``data`` begins with BTF's magic in this machine's byte order."""
    return len(data) >= HEADER.size and HEADER.unpack_from(data)[0] == MAGIC


def parse_header(data: Blob) -> BtfHeader:
    """Parse the header; raises ValueError when it is not BTF or its sections do not fit."""
    if not is_btf(data):
        raise ValueError(f"parse BTF: no magic 0x{MAGIC:x} in the first {HEADER.size} bytes")
    _, version, _, length, type_off, type_len, str_off, str_len = HEADER.unpack_from(data)
    header = BtfHeader(length + type_off, type_len, length + str_off, str_len)
    if version != 1:
        raise ValueError(f"parse BTF: version {version} instead of 1")
    if type_len % 4 or header.types_at % 4:
        raise ValueError("parse BTF: the type section is not made of whole words")
    for at, size in ((header.types_at, type_len), (header.strings_at, str_len)):
        if at + size > len(data):
            raise ValueError(f"parse BTF: a section ends at {at + size} of {len(data)} bytes")
    return header


def _string_offset(data: Blob, header: BtfHeader, text: str) -> int:
    # The section begins with a NUL, so each string has one on both sides.
    wanted = b"\0" + text.encode() + b"\0"
    end = header.strings_at + header.strings_bytes
    found = data.find(wanted, header.strings_at, end)
    return -1 if found < 0 else found + 1 - header.strings_at


def has_string(data: Blob, text: str) -> bool:
    """Tell whether exactly ``text`` is in the string section; raises ValueError."""
    return _string_offset(data, parse_header(data), text) >= 0


def has_tracepoint(data: bytes, name: str) -> bool:
    """Tell whether the string ``btf_trace_<name>`` is there; a scan, a few ms; ValueError."""
    return has_string(data, f"btf_trace_{name}")


def tracepoint_names(data: bytes) -> list[str]:
    """Return the names of all tracepoints that it describes, sorted; a scan; raises ValueError."""
    header = parse_header(data)
    strings = data[header.strings_at : header.strings_at + header.strings_bytes]
    mark = b"\0btf_trace_"
    return sorted(part.split(b"\0")[0].decode() for part in strings.split(mark)[1:])


def tracepoint_type_ids(data: bytes, names: Iterable[str]) -> dict[str, int]:
    """Return the type id of each ``typedef btf_trace_<name>``; unknown names are left out.

    The id is what BPF_PROG_LOAD takes as ``attach_btf_id`` for a tp_btf program. Walks all
    types once (about 0.1 s for a whole kernel). Raises ValueError on malformed data or on
    a kind of type that came after this code.
    """
    marked = {f"btf_trace_{name}": name for name in names}
    return {marked[found]: number for found, number in _type_ids(data, marked, TYPEDEF).items()}


def function_type_ids(data: bytes, names: Iterable[str]) -> dict[str, int]:
    """Return the type id of each kernel function; otherwise as ``tracepoint_type_ids``."""
    return _type_ids(data, names, FUNCTION)


def _type_ids(data: bytes, names: Iterable[str], wanted: int) -> dict[str, int]:
    header = parse_header(data)
    by_offset: dict[int, str] = {}
    for name in names:
        offset = _string_offset(data, header, name)
        if offset >= 0:
            by_offset[offset] = name
    section = memoryview(data)[header.types_at : header.types_at + header.types_bytes]
    words = section.cast("I")
    found: dict[str, int] = {}
    at, type_id, count = 0, 1, len(words)
    while at + 3 <= count and len(found) < len(by_offset):
        info = words[at + 1]
        kind = info >> 24 & 0x1F
        if kind == wanted and words[at] in by_offset:
            found.setdefault(by_offset[words[at]], type_id)
        try:
            fixed, each = TRAILING_WORDS[kind]
        except KeyError:
            raise ValueError(f"parse BTF: type {type_id} is of unknown kind {kind}") from None
        at += 3 + fixed + each * (info & 0xFFFF)
        type_id += 1
    return found


def read_vmlinux(path: str = VMLINUX) -> bytes:
    """Read the running kernel's BTF (a few MB); raises OSError, or ValueError if it is not BTF."""
    with open(path, "rb") as file:
        data = file.read()
    parse_header(data)
    return data


def preempts_programs(path: str | None = None) -> bool:
    """Tell whether this kernel takes the CPU from programs at tracepoints, and skips them then.

    Before 7.0 it reads the kernel's BTF. False if there is none then.
    """
    number = os.uname().release.partition(".")[0]
    if number.isdigit() and int(number) >= PREEMPTING_RELEASE:
        return True
    try:
        with open(path or VMLINUX, "rb") as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
            except (OSError, ValueError):  # of size 0, or of a file system without
                return has_string(file.read(), PREEMPTIBLE_SIGN)
            with mapped:
                return has_string(mapped, PREEMPTIBLE_SIGN)
    except (OSError, ValueError):
        return False
