"""Declared events, as a type checker reads them: see test_events_declare.py."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any

from typing_extensions import assert_type

from kerneltrace_core.events.annotations import Array, Offset
from kerneltrace_core.events.binding import BoundEvent, bind
from kerneltrace_core.events.declare import kernel_event
from kerneltrace_core.events.devices import Device
from kerneltrace_core.events.engine import KernelEvent, Reader
from kerneltrace_core.events.header import EventHeader
from kerneltrace_core.events.scalars import (
    Chars,
    IPv4,
    IPv6,
    be16,
    be32,
    chars,
    device,
    f64,
    s32,
    u8,
    u16,
    u32,
    u64,
)
from unit.events_layouts import EVERYTHING, objects


class State(IntEnum):
    OPEN = 1
    CLOSED = 2


class Bits(IntFlag):
    ONE = 1
    FOUR = 4


@kernel_event("point")
class Point(KernelEvent):
    x: s32
    y: s32

    def length(self) -> float:
        return float((self.x**2 + self.y**2) ** 0.5)


@kernel_event("everything")
class Everything(KernelEvent):
    """All there is."""

    header: EventHeader
    fd: s32
    from_: IPv4
    comm: Annotated[str, Chars(16)]
    state: State
    low: Annotated[u32, Offset(52)]
    high: s32
    address: IPv6
    corners: tuple[Point, ...]
    whole: u64
    halves: Annotated[tuple[int, ...], Array(u32, 2)]
    ratio: f64
    where: u64
    flag: bool
    letter: int
    port: be16
    matrix: Annotated[tuple[tuple[int, ...], ...], Array(Array(u16, 3), 2)]
    wide: int

    @property
    def twice(self) -> int:
        return 2 * self.fd


@kernel_event("plain")
class PlainClass:
    fd: int
    path: chars
    raw: bytes
    flags: Bits
    anything: Any
    disk: device
    small: u8
    network: be32


def check() -> None:
    bound = bind(Everything, objects(EVERYTHING))
    assert_type(bound, BoundEvent[Everything])
    reader: Reader[Everything] = Reader(bound.cls, bound.selector, lambda: None, absent)
    for event in reader:
        assert_type(event, Everything)
        assert_type(event.fd, int)
        assert_type(event.comm, str)
        assert_type(event.from_, IPv4Address)
        assert_type(event.address, IPv6Address)
        assert_type(event.state, State)
        assert_type(event.corners[0].x, int)
        assert_type(event.corners[0].length(), float)
        assert_type(event.header.time_ns, int)
        assert_type(event.halves, tuple[int, ...])
        assert_type(event.port, int)
        assert_type(event.flag, bool)
        assert_type(event.ratio, float)
        assert_type(event.twice, int)
        assert_type(event.as_dict(), dict[str, Any])
        assert_type(event.origin, int)
    assert_type(Everything.from_bytes(b""), Everything)
    by_name = bind("everything", objects(EVERYTHING))
    assert_type(by_name, BoundEvent[KernelEvent])


def check_plain(event: PlainClass) -> None:
    assert_type(event.path, str)
    assert_type(event.disk, Device)
    assert_type(event.disk.major, int)
    assert_type(event.flags, Bits)


async def absent() -> None:
    return None
