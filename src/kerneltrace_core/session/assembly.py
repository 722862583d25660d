"""Put a session together, all or nothing, and take it apart in the reverse order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.btf.layout import MapLayout, ObjectLayout
from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.events.binding import bind, perf_is_sized
from kerneltrace_core.maps.maps import Maps
from kerneltrace_core.ring.perf import PerfReader
from kerneltrace_core.ring.reader import RingReader
from kerneltrace_core.session.configure import choose, configure, set_filter
from kerneltrace_core.session.filters import FilterControl
from kerneltrace_core.session.links import Link
from kerneltrace_core.session.loading import Planned, load
from kerneltrace_core.session.parts import Parts
from kerneltrace_core.session.prepare import prepare
from kerneltrace_core.session.rings import RINGBUF, Rings
from kerneltrace_core.session.source import find_btf, read_object
from kerneltrace_core.session.variables import MappedSections, Variables

if TYPE_CHECKING:
    from kerneltrace_core.ring.protocol import ReaderProtocol
    from kerneltrace_core.session.options import SessionOptions
    from kerneltrace_core.session.probe import Probe

__all__ = ["assemble"]


def assemble(name: str, options: SessionOptions) -> Parts:
    """Load, configure, and attach; blocks for tens of milliseconds. Whatever fails undoes all."""
    source, data = read_object(options.object)
    layout = ObjectLayout.from_elf(data, source)
    for event in options.events:
        bind(event, layout)
    btf = None if options.btf is None else find_btf(options.btf)
    refusals: list[tuple[str, Probe, KernelTraceError]] = []

    def plan(left_out: frozenset[str]) -> Planned:
        opened = BpfObject(data, source, btf_path=None if btf is None else str(btf))
        try:
            probes = choose(opened, options, left_out)
            configure(opened, layout, options)
            refusals[:] = prepare(opened, [(program, probe) for probe, program in probes])
        except BaseException:
            opened.close()
            raise
        return Planned(opened, probes)

    opened, probes, refused = load(plan)
    with ExitStack() as undo:
        undo.callback(opened.close)
        maps = Maps(opened.map_fd, layout.maps)
        undo.callback(maps.close)
        variables = Variables(layout.variables, MappedSections(opened))
        undo.callback(variables.close)
        follows = options.filter is not None and options.filter.follow_forks
        control = FilterControl.of(maps, layout, follows=follows)
        set_filter(control, options, source)
        streams = Rings(name, options, layout, _readers(opened, sized=perf_is_sized(layout)))
        undo.callback(streams.close)
        parts = Parts(layout, opened, maps, variables, streams, control)
        unprepared = {(program, probe): error for program, probe, error in refusals}
        for probe, program in probes:
            error = refused.get(program) or unprepared.get((program, probe))
            if error is not None:
                parts.links.append(Link.refused(opened, program, probe, error))
                continue
            link = Link(opened, program, probe)
            undo.callback(link.close)
            link.attach()
            parts.links.append(link)
        undo.pop_all()
    return parts


def _readers(opened: BpfObject, *, sized: bool) -> Callable[[MapLayout], ReaderProtocol]:
    def open_reader(layout: MapLayout) -> ReaderProtocol:
        map_fd = opened.map_fd(layout.name)
        if layout.type == RINGBUF:
            return RingReader(map_fd, layout.name)
        return PerfReader(map_fd, layout.name, sized=sized)

    return open_reader
