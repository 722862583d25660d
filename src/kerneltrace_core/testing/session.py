"""FakeSession: a session without a kernel, whose events a test sends itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from kerneltrace_core.btf.layout import MapLayout, ObjectLayout, VariableLayout
from kerneltrace_core.errors import AttachError, OptionError
from kerneltrace_core.events.binding import bind
from kerneltrace_core.events.classes import event_class
from kerneltrace_core.maps.codec import Codec
from kerneltrace_core.maps.maps import Maps
from kerneltrace_core.session.filters import FilterControl
from kerneltrace_core.session.parts import Parts
from kerneltrace_core.session.probe import Probe
from kerneltrace_core.session.rings import Rings, is_ring
from kerneltrace_core.session.session import Session
from kerneltrace_core.session.source import read_object
from kerneltrace_core.session.variables import Variables, encode_variable
from kerneltrace_core.testing.maps import FakeMapCalls
from kerneltrace_core.testing.ring import FakeRing

__all__ = ["FakeLink", "FakeSession"]


class FakeLink:
    """The attachment of a fake session: it is on or off, and nothing else."""

    def __init__(self, spec: Probe) -> None:
        self.spec = spec
        self.program = spec.program or spec.target()
        self.error = None
        self.attached = False
        self.closed = False

    def attach(self) -> None:
        """Be attached."""
        self.attached = True

    def detach(self) -> None:
        """Be detached."""
        self.attached = False

    def close(self) -> None:
        """Be detached for good."""
        self.detach()
        self.closed = True

    abandon = close


class FakeObject:
    """What is left of a BPF object without a kernel: its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def close(self) -> None:
        """There is nothing to free."""

    abandon = close


class FakeSections:
    """Data sections in ordinary memory."""

    def __init__(self, layouts: Mapping[str, VariableLayout]) -> None:
        self._sections: dict[str, bytearray] = {}
        for layout in layouts.values():
            section = self._sections.setdefault(layout.section, bytearray())
            missing = layout.offset + layout.size - len(section)
            section.extend(bytes(max(0, missing)))

    def memory(self, layout: VariableLayout) -> bytearray:
        """Return the memory of a variable's section."""
        return self._sections[layout.section]

    def close(self) -> None:
        """Nothing is mapped."""


class FakeParts(Parts):
    """What a fake session is made of."""

    rings: dict[str, FakeRing]

    def attach(self, probe: Probe) -> Any:
        """Attach, if the object has a program for it by name."""
        if probe.program is not None and probe.program not in self.layout.programs:
            raise AttachError(
                f"attach {probe}: object {self.object.name} has no program {probe.program}"
            )
        link: Any = FakeLink(probe)
        link.attach()
        self.links.append(link)
        return link


class FakeSession(Session):
    """Use a session's whole API on any operating system, without privileges.

    The object is read for its types, maps and variables; maps hold what is put into them,
    variables are zero or what was given, probes attach to nothing. ``emit`` sends an event, as a
    program would. Options are checked as ever. Not for finding out whether a program loads.
    """

    def _assemble(self) -> Parts:
        options = self.options
        name, data = read_object(options.object)
        layout = ObjectLayout.from_elf(data, name)
        for event in options.events:
            bind(event, layout)
        calls = FakeMapCalls()
        descriptors: dict[str, int] = {}

        def map_fd(wanted: str) -> int:
            if wanted not in descriptors:
                descriptors[wanted] = calls.create_like(layout.maps[wanted])
            return descriptors[wanted]

        maps = Maps(map_fd, layout.maps, calls=calls)
        sections = FakeSections(layout.variables)
        for variable, value in options.variables.items():
            found, encoded = encode_variable(layout.variables, variable, value)
            sections.memory(found)[found.offset : found.offset + found.size] = encoded
        variables = Variables(layout.variables, sections)
        rings = {each.name: _ring(each) for each in layout.maps.values() if is_ring(each)}
        streams = Rings(self.name, options, layout, lambda each: rings[each.name])
        follows = options.filter is not None and options.filter.follow_forks
        control = FilterControl.of(maps, layout, follows=follows)
        opened: Any = FakeObject(name)
        parts = FakeParts(layout, opened, maps, variables, streams, control)
        parts.rings = rings
        for probe in () if isinstance(options.probes, str) else options.probes:
            parts.attach(probe)
        return parts

    def emit(self, event: str, *, ring: str | None = None, **fields: Any) -> None:
        """Send an event of a struct of the object; fields that are not given are zero.

        A struct that begins with our header gets its tag, its size and the time, unless they are
        given. Raises OptionError for an unknown struct or field, and when the ring is full.
        """
        layout = self.layout.structs.get(event)
        if layout is None:
            raise OptionError(f"emit {event}: the object has no such struct")
        values = event_class(layout).from_bytes(bytes(layout.size)).as_dict()
        if unknown := fields.keys() - values.keys():
            raise OptionError(
                f"emit {event}: it has no field {', '.join(sorted(unknown))} "
                f"(it has {', '.join(values)})"
            )
        tag = self.layout.events.get(event)
        if tag is not None and "header" in values:
            values["header"] |= {
                "type": tag.tag,
                "size": layout.size,
                "time_ns": time.monotonic_ns(),
            }
        for name, value in fields.items():
            nested = isinstance(value, Mapping) and isinstance(values[name], dict)
            values[name] = {**values[name], **value} if nested else value
        self.emit_bytes(Codec(layout).encode(values), ring=ring)

    def emit_bytes(self, record: bytes, *, ring: str | None = None) -> None:
        """Send a record as it is. Raises OptionError when the ring is full."""
        rings = self._fake().rings
        if ring is None and len(rings) == 1:
            [ring] = rings
        if ring not in rings:
            raise OptionError(f"emit to ring {ring}: the object has {', '.join(rings) or 'none'}")
        if not rings[ring].submit(record):
            raise OptionError(f"emit to ring {ring}: it is full (nobody reads it)")

    def _fake(self) -> FakeParts:
        parts = self._open("emit")
        assert isinstance(parts, FakeParts)
        return parts


def _ring(layout: MapLayout) -> FakeRing:
    return FakeRing(layout.name, max(layout.max_entries, 1 << 16))
