"""Stack traces: what bpf_get_stackid() kept, by id."""

from __future__ import annotations

import errno
import operator
import struct
import sys
from typing import Any, NamedTuple, cast

from kerneltrace_core.errors import MapKeyError, OptionError
from kerneltrace_core.maps.codec import Codec
from kerneltrace_core.maps.kinds import MapFlags
from kerneltrace_core.maps.mapping import KeyedMap

__all__ = ["BuildIdFrame", "Stack", "StackTraceMap", "stack_failure"]

ADDRESS_BYTES = 8
# struct bpf_stack_build_id of linux/bpf.h: status, build id, offset or address.
BUILD_ID = struct.Struct("=i20sQ")

REASONS = {
    errno.EEXIST: "another stack is in its place (more max_entries, pop() those that were read, or "
    "BPF_F_REUSE_STACKID to overwrite)",
    errno.EFAULT: "there is no such stack to walk: a kernel thread has no user stack, and user "
    "code without frame pointers none that the kernel can follow",
    errno.ENOMEM: "the kernel had no memory for it",
    errno.EBUSY: "the kernel was busy with another stack on this CPU",
    errno.EINVAL: "the program asked with wrong flags",
    errno.EOPNOTSUPP: "this kernel cannot walk such a stack",
}


class BuildIdFrame(NamedTuple):
    """A frame of a map made with BPF_F_STACK_BUILD_ID.

    ``build_id`` is empty where the kernel could not read the file's; then ``offset`` is the
    address, else the place in the file.
    """

    build_id: bytes
    offset: int


Stack = tuple[int, ...] | tuple[BuildIdFrame, ...]


def stack_failure(stack_id: int) -> str | None:
    """Say why bpf_get_stackid() gave this instead of an id; None for what is an id.

    Takes the number as a program's u32 field has it, too: 4294967279 is -17.
    """
    if stack_id >= 1 << 31:
        stack_id -= 1 << (64 if stack_id >= 1 << 32 else 32)
    if stack_id >= 0:
        return None
    named = f"-{errno.errorcode.get(-stack_id, -stack_id)}"
    reason = REASONS.get(-stack_id)
    return f"{named}: {reason}" if reason else named


class StackTraceMap(KeyedMap[int, Stack]):
    """Stacks by id: tuples of addresses, the innermost first. Linux 4.6.

    A negative id is a failure of bpf_get_stackid(): MapKeyError names it. Nothing removes old
    stacks but ``pop``, ``del`` and ``clear``; a full place is -EEXIST for the program.
    """

    def _key_codec(self) -> Codec:
        return Codec(None, self._shape.key_size)

    def _value_codec(self) -> Codec:
        return Codec(None, self._shape.value_size)

    def _encode_key(self, key: Any) -> bytes:
        if isinstance(key, bytes | bytearray | memoryview):
            return self._key.encode(key)
        try:
            stack_id = operator.index(key)
        except TypeError:
            raise OptionError(f"{key!r} is no stack id") from None
        failure = stack_failure(stack_id)
        if failure is not None:
            raise MapKeyError(f"read map {self.name}: {key} is no stack id but {failure}")
        return stack_id.to_bytes(4, sys.byteorder)

    def __contains__(self, key: object) -> bool:
        try:
            return super().__contains__(key)
        except MapKeyError:
            return False

    def _decode_key(self, data: bytes) -> int:
        return int.from_bytes(data, sys.byteorder)

    def _decode_value(self, data: bytes) -> Stack:
        if self._shape.flags & MapFlags.STACK_BUILD_ID:
            frames = []
            for status, build_id, offset in BUILD_ID.iter_unpack(data):
                if status == 0:  # BPF_STACK_BUILD_ID_EMPTY: the end
                    break
                frames.append(BuildIdFrame(build_id if status == 1 else b"", offset))
            return tuple(frames)
        addresses = cast("tuple[int, ...]", struct.unpack(f"={len(data) // ADDRESS_BYTES}Q", data))
        depth = len(addresses)
        while depth and not addresses[depth - 1]:
            depth -= 1
        return addresses[:depth]

    def _store(self, key: Any, value: Any, flags: int, act: str) -> None:  # noqa: ARG002
        self._cannot(act, "stacks are kept by programs, with bpf_get_stackid()")

    @property
    def depth(self) -> int:
        """The most frames that a stack here has."""
        by_build_id = self._shape.flags & MapFlags.STACK_BUILD_ID
        return self._shape.value_size // (BUILD_ID.size if by_build_id else ADDRESS_BYTES)
