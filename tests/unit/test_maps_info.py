"""What is known of a map, and how failures of stacks are named."""

from __future__ import annotations

import struct

import pytest

from harness.map_layouts import U32, layout_of
from kerneltrace_core.maps.info import MapInfo
from kerneltrace_core.maps.kinds import MapFlags, MapType, map_type
from kerneltrace_core.maps.opening import open_map
from kerneltrace_core.maps.stacks import BuildIdFrame, stack_failure
from kerneltrace_core.testing.maps import FakeMapCalls

FDINFO = """pos:\t0
flags:\t02000002
mnt_id:\t16
ino:\t2059
map_type:\t1
key_size:\t4
memlock:\t1936
map_id:\t82383
frozen:\t1
"""


def bare() -> MapInfo:
    return MapInfo(MapType.HASH, 1, "x", 4, 8, 10, MapFlags(0))


def test_memory_frozen_and_access_come_from_proc() -> None:
    info = bare().with_fdinfo(FDINFO.splitlines(keepends=True))
    assert (info.memory_bytes, info.frozen, info.access) == (1936, True, "both")
    read_only = bare().with_fdinfo(["flags:\t02000000\n", "frozen:\t0\n"])
    assert (read_only.memory_bytes, read_only.frozen, read_only.access) == (None, False, "read")


@pytest.mark.parametrize("lines", [[], ["x"], ["flags:\n"], ["flags:\t9\n", "memlock:\tmany\n"]])
def test_what_proc_does_not_say_is_unknown(lines: list[str]) -> None:
    assert bare().with_fdinfo(lines) == bare()


def test_types_of_maps_have_the_kernels_names_and_newer_ones_their_number() -> None:
    assert (map_type(7), map_type(27)) == (MapType.STACK_TRACE, MapType.RINGBUF)
    assert map_type(999) == 999


@pytest.mark.parametrize(
    ("stack_id", "told"),
    [
        (-17, "-EEXIST: another stack is in its place"),
        (-14, "-EFAULT: there is no such stack to walk"),
        (-12, "-ENOMEM: the kernel had no memory"),
        ((1 << 32) - 17, "-EEXIST: another"),
        ((1 << 64) - 14, "-EFAULT: there"),
        (-1, "-EPERM"),
        (-9999, "-9999"),
    ],
)
def test_a_number_that_is_no_stack_id_has_a_named_reason(stack_id: int, told: str) -> None:
    found = stack_failure(stack_id)
    assert found is not None
    assert found.startswith(told)


@pytest.mark.parametrize("stack_id", [0, 1, (1 << 31) - 1])
def test_a_stack_id_is_no_failure(stack_id: int) -> None:
    assert stack_failure(stack_id) is None


def test_frames_by_build_id_end_where_the_kernel_stopped() -> None:
    layout = layout_of(MapType.STACK_TRACE, U32, None, 4, flags=MapFlags.STACK_BUILD_ID)
    fake = FakeMapCalls()
    fd = fake.create(layout.type, "stacks", 4, 4 * 32, 4, int(MapFlags.STACK_BUILD_ID))
    frames = struct.pack("=i20sQ", 1, b"B" * 20, 0x10) + struct.pack("=i20sQ", 2, b"", 0x7F00)
    stored = fake.descriptors[fd]
    stored.entries[(3).to_bytes(4, "little")] = frames + bytes(64)

    with open_map(fd, "stacks", calls=fake) as stacks:
        assert stacks[3] == (BuildIdFrame(b"B" * 20, 0x10), BuildIdFrame(b"", 0x7F00))
        assert stacks.depth == 4
