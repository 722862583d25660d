"""tests/probes/filters.bpf.c with a filter: how many getppid calls it wanted, of whom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from harness.objects import compile_object
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.btf.layout import ObjectLayout
from kerneltrace_core.maps.maps import Maps
from kerneltrace_core.session.filters import FOLLOWERS, Filter, FilterControl
from kerneltrace_core.session.loss import read_counters
from kerneltrace_core.session.variables import MappedSections, Variables

PROGRAM = "count_wanted"


class Filtering:
    """The loaded object: who is wanted, and what was counted since the last look."""

    def __init__(
        self, layout: ObjectLayout, control: FilterControl, maps: Maps, variables: Variables
    ) -> None:
        self.control = control
        self._layout = layout
        self._maps = maps
        self._variables = variables
        self._seen = 0

    def wanted(self) -> int:
        """Return how many calls were wanted since this was asked last."""
        now = int(self._variables["wanted"])
        since, self._seen = now - self._seen, now
        return since

    def filtered(self) -> int:
        """Return how many calls of anybody were not wanted."""
        return read_counters(self._layout, self._maps)[PROGRAM].filtered


@contextmanager
def filtering(
    wanted: Filter | None, *, follows: bool = False, processes: int | None = None
) -> Iterator[Filtering]:
    """Count the calls of whom ``wanted`` says; ``processes``: room in the set of processes."""
    data = compile_object("filters").read_bytes()
    layout = ObjectLayout.from_elf(data)
    programs = [*FOLLOWERS, PROGRAM] if follows else [PROGRAM]
    with ExitStack() as undo:
        opened = undo.enter_context(BpfObject(data, "filters"))
        opened.select(set(programs))
        if processes is not None:
            opened.resize_map("kt_filter_tgids", processes)
        opened.load()
        maps = Maps(opened.map_fd, layout.maps)
        undo.callback(maps.close)
        variables = Variables(layout.variables, MappedSections(opened))
        undo.callback(variables.close)
        control = FilterControl.of(maps, layout, follows=follows)
        assert control is not None
        if wanted is not None:
            control.set(wanted)
        for program in programs:
            opened.attach(program)
        yield Filtering(layout, control, maps, variables)


def call(count: int) -> None:
    """Make so many getppid calls; each is one system call."""
    for _ in range(count):
        os.getppid()
