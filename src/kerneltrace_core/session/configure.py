"""What options do to an object that is opened and not loaded: a real one, or that of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kerneltrace_core.bpf.program import Configurable
from kerneltrace_core.errors import OptionError
from kerneltrace_core.session.auto import auto_probes
from kerneltrace_core.session.choosing import choose_program
from kerneltrace_core.session.kernel_probes import BtfTracepoint
from kerneltrace_core.session.variables import preset

if TYPE_CHECKING:
    from kerneltrace_core.btf.layout import ObjectLayout
    from kerneltrace_core.session.filters import FilterControl
    from kerneltrace_core.session.options import SessionOptions
    from kerneltrace_core.session.probe import Probe

__all__ = ["choose", "configure", "set_filter"]

# The programs of kt_filter.h, which only a filter that follows forks needs.
FOLLOWERS = (
    BtfTracepoint("sched_process_free", program="kt_follow_free"),
    BtfTracepoint("sched_process_exit", program="kt_follow_exit"),
    BtfTracepoint("sched_process_fork", program="kt_follow_fork"),
)


def choose(
    opened: Configurable, options: SessionOptions, left_out: frozenset[str] = frozenset()
) -> list[tuple[Probe, str]]:
    """Say which programs are loaded; return which of them is for which probe.

    Raises OptionError, AttachError.
    """
    known = {each.name for each in opened.programs()}
    if options.programs is None:
        wanted = {each.name for each in opened.programs() if each.loads}
    else:
        for missing in set(options.programs) - known:
            raise OptionError(
                f"Session option programs: object {opened.name} has no program {missing} "
                f"(it has {', '.join(sorted(known))})"
            )
        wanted = set(options.programs)
    opened.select(wanted)
    # The only word that the options accept is "auto".
    specs = auto_probes(opened) if isinstance(options.probes, str) else options.probes
    probes = [(each, choose_program(opened, each)) for each in specs]
    if options.filter is not None and options.filter.follow_forks:
        # First: a process that is forked meanwhile is followed from its beginning.
        probes[:0] = [(each, str(each.program)) for each in FOLLOWERS if each.program in known]
    opened.select((wanted | {program for _, program in probes}) - left_out)
    return probes


def configure(opened: Configurable, layout: ObjectLayout, options: SessionOptions) -> None:
    """Set variables and the sizes of maps. Raises OptionError."""
    for name, value in options.variables.items():
        preset(opened, layout.variables, name, value)
    for name, entries in options.map_sizes.items():
        if name not in layout.maps:
            raise OptionError(
                f"Session option map_sizes: object {opened.name} has no map {name} "
                f"(it has {', '.join(layout.maps) or 'none'})"
            )
        opened.resize_map(name, entries)


def set_filter(control: FilterControl | None, options: SessionOptions, source: str) -> None:
    """Say whom the programs trace, if the options do. Raises OptionError."""
    if options.filter is None:
        return
    if control is None:
        raise OptionError(
            f"Session option filter: object {source} was built without filters "
            "(include <kerneltrace/kt_filter.h> and ask kt_wanted() in its programs)"
        )
    control.set(options.filter)
