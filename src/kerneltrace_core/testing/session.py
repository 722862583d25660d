"""FakeSession: a session without a kernel, whose events a test sends itself."""

from __future__ import annotations

import difflib
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from kerneltrace_core.btf.layout import MapLayout, ObjectLayout
from kerneltrace_core.errors import OptionError
from kerneltrace_core.events.binding import bind, perf_padding, says_its_size
from kerneltrace_core.events.classes import event_class
from kerneltrace_core.maps.codec import Codec
from kerneltrace_core.maps.maps import Maps
from kerneltrace_core.session.choosing import choose_program
from kerneltrace_core.session.configure import choose, configure, set_filter
from kerneltrace_core.session.filters import FilterControl
from kerneltrace_core.session.info import ProgramInfo
from kerneltrace_core.session.loss import COUNTERS
from kerneltrace_core.session.parts import Parts
from kerneltrace_core.session.probe import Probe
from kerneltrace_core.session.rings import PERF_EVENT_ARRAY, RINGBUF, Rings, is_ring
from kerneltrace_core.session.session import Session
from kerneltrace_core.session.source import find_btf, read_object
from kerneltrace_core.session.traceline import TraceLine
from kerneltrace_core.session.variables import Variables
from kerneltrace_core.testing.links import FakeLink
from kerneltrace_core.testing.maps import FakeMapCalls
from kerneltrace_core.testing.object import FakeObject
from kerneltrace_core.testing.ring import FakeRing
from kerneltrace_core.testing.tracelog import FakeTraceLog

__all__ = ["FakeSession"]

PAGE_BYTES = 4096
RING_BYTES = 1 << 16  # of rings whose C source leaves the size to Python, and of perf buffers


class FakeParts(Parts):
    """What a fake session is made of, and what a test does to it."""

    def __init__(
        self,
        layout: ObjectLayout,
        opened: Any,
        maps: Maps,
        variables: Variables,
        streams: Rings,
        control: FilterControl | None,
        rings: dict[str, FakeRing],
    ) -> None:
        super().__init__(layout, opened, maps, variables, streams, control)
        self.rings = rings
        self._lines: deque[TraceLine] = deque()

    def attach(self, probe: Probe) -> Any:
        """Attach to nothing. Raises AttachError if no program of the object is made for it."""
        with self.object.in_use():
            return self.link(choose_program(self.object, probe), probe)

    def link(self, program: str, probe: Probe) -> Any:
        """Attach a program to nothing."""
        link: Any = FakeLink(program, probe)
        link.attach()
        self.links[:] = [each for each in self.links if not each.closed]
        self.links.append(link)
        return link

    def program_info(self) -> dict[str, ProgramInfo]:
        """Describe the programs that would be loaded."""
        opened: Any = self.object
        return opened.program_info()  # type: ignore[no-any-return]

    def put_line(self, line: TraceLine) -> None:
        """Write to the session's trace log."""
        self._lines.append(line)
        for log in list(self._logs):
            log.wake()

    def _open_log(self, timeout: float | None) -> FakeTraceLog:
        return FakeTraceLog(self._lines, timeout)


class FakeSession(Session):
    """Use a session's whole API on any operating system, without privileges.

    The object is read for its types, maps, variables and programs; maps hold what is put into
    them, variables what the source says or was given, probes attach to nothing. ``emit`` sends an
    event, as a program would. Options are checked as ever. Not for finding out whether a program
    loads.
    """

    def _assemble(self) -> Parts:
        options = self.options
        name, data = read_object(options.object)
        layout = ObjectLayout.from_elf(data, name)
        for event in options.events:
            bind(event, layout)
        if options.btf is not None:
            find_btf(options.btf)
        opened: Any = FakeObject(data, name, layout)
        probes = choose(opened, options)
        configure(opened, layout, options)
        with ExitStack() as undo:
            maps = _maps(opened, layout)
            undo.callback(maps.close)
            variables = Variables(layout.variables, opened)
            follows = options.filter is not None and options.filter.follow_forks
            control = FilterControl.of(maps, layout, follows=follows)
            set_filter(control, options, name)
            described = [each for each in layout.maps.values() if is_ring(each)]
            rings = {each.name: _ring(each, opened) for each in described}
            streams = Rings(self.name, options, layout, lambda each: rings[each.name])
            undo.callback(streams.close)
            parts = FakeParts(layout, opened, maps, variables, streams, control, rings)
            for probe, program in probes:
                parts.link(program, probe)
            undo.pop_all()
        return parts

    def emit(self, event: str, *, ring: str | None = None, **fields: Any) -> None:
        """Send an event of a struct of the object; fields that are not given are zero.

        A perf buffer pads it as the kernel's do. An event of more than its struct's size, with a
        flexible array, is for ``emit_bytes``.

        A struct that begins with our header gets its tag, its size and the time, unless they are
        given. Raises OptionError for an unknown struct or field, and when the ring is full.
        """
        known = self._fake().layout
        layout = known.structs.get(event)
        if layout is None:
            near = difflib.get_close_matches(str(event), known.structs, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise OptionError(f"emit {event}: the object has no such struct{hint}")
        values = event_class(layout).from_bytes(bytes(layout.size)).as_dict()
        if unknown := fields.keys() - values.keys():
            raise OptionError(
                f"emit {event}: it has no field {', '.join(sorted(unknown))} "
                f"(it has {', '.join(values)})"
            )
        tag = known.events.get(event)
        if tag is not None and "header" in values:
            values["header"] |= {
                "type": tag.tag,
                "size": layout.size,
                "time_ns": time.monotonic_ns(),
            }
        for name, value in fields.items():
            nested = isinstance(value, Mapping) and isinstance(values[name], dict)
            values[name] = {**values[name], **value} if nested else value
        try:
            record = Codec(layout).encode(values)
        except OptionError as error:
            raise OptionError(f"emit {event}: {error}") from None
        if not says_its_size(layout) and self._is_perf(ring):
            record += bytes(perf_padding(len(record)))
        self.emit_bytes(record, ring=ring)

    def _is_perf(self, ring: str | None) -> bool:
        parts = self._fake()
        name = next(iter(parts.rings)) if ring is None and len(parts.rings) == 1 else ring
        described = parts.layout.maps.get(str(name))
        return described is not None and described.type == PERF_EVENT_ARRAY

    def emit_bytes(self, record: bytes, *, ring: str | None = None) -> None:
        """Send a record as a reader gets it. Raises OptionError when the ring is full."""
        rings = self._fake().rings
        if not isinstance(record, bytes | bytearray | memoryview):
            raise OptionError(f"emit record: {record!r} is not bytes")
        if ring is None and len(rings) == 1:
            [ring] = rings
        if ring not in rings:
            known = ", ".join(rings) or "none"
            told = f"emit to ring {ring}: the object has {known}"
            raise OptionError(told if ring else f"emit: say to which ring (ring=, of {known})")
        if not rings[ring].submit(bytes(record)):
            raise OptionError(f"emit to ring {ring}: it is full (nobody reads it)")

    def emit_line(self, text: str) -> None:
        """Write a line to the session's trace log, as a program does by bpf_printk."""
        parts = self._fake()
        pid, time_ns = os.getpid(), time.monotonic_ns() // 1000 * 1000
        parts.put_line(TraceLine("fake", pid, 0, time_ns, text))

    def lose(self, program: str, count: int = 1) -> None:
        """Let a program that counts (``KT_PROBE``) have found no space for so many records.

        Raises OptionError for a program that does not count.
        """
        parts = self._fake()
        index = parts.layout.probes.get(program)
        if index is None:
            known = ", ".join(parts.layout.probes) or "none"
            raise OptionError(f"lose records of {program}: no program that counts ({known} do)")
        cells = [cell.as_dict() for cell in parts.maps[COUNTERS][index]]
        cells[0]["seen"] += count
        cells[0]["lost"] += count
        parts.maps[COUNTERS][index] = cells

    def _fake(self) -> FakeParts:
        parts = self._open("emit")
        assert isinstance(parts, FakeParts)
        return parts


def _maps(opened: FakeObject, layout: ObjectLayout) -> Maps:
    calls = FakeMapCalls()
    descriptors: dict[str, int] = {}

    def map_fd(wanted: str) -> int:
        if wanted not in descriptors:
            each = layout.maps[wanted]
            entries = opened.map_sizes.get(wanted, each.max_entries)
            descriptors[wanted] = calls.create_like(replace(each, max_entries=entries))
        return descriptors[wanted]

    return Maps(map_fd, layout.maps, calls=calls)


def _ring(layout: MapLayout, opened: FakeObject) -> FakeRing:
    size = opened.map_sizes.get(layout.name, layout.max_entries)
    if layout.type != RINGBUF or not size:
        return FakeRing(layout.name, RING_BYTES)
    # As libbpf does: a power of two of pages.
    return FakeRing(layout.name, max(PAGE_BYTES, 1 << (size - 1).bit_length()))
