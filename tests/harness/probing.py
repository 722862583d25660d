"""An object of tests/probes with probes attached, its counters readable as they change."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from harness.objects import compile_object
from harness.pace import time_factor
from kerneltrace_core._native import lib
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.kernel.features import FeatureProbes
from kerneltrace_core.kernel.privileges import read_privileges
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.session.choosing import choose_program
from kerneltrace_core.session.links import Link
from kerneltrace_core.session.prepare import prepare
from kerneltrace_core.session.probe import Probe

PATIENCE_SECONDS = 10.0


def either_uprobe() -> Support:
    """Tell whether uprobes are to be had, through perf or by a link of several."""
    probes = FeatureProbes(read_privileges())
    by_link = probes.uprobe_multi_by_process()
    return by_link if by_link.works else probes.uprobes()


class Probing:
    """Links in the order of their specs, and the object's 64-bit variables by name."""

    def __init__(self, opened: BpfObject, links: Sequence[Link], bss: mmap.mmap) -> None:
        self.object = opened
        self.links = tuple(links)
        self._bss = bss

    def __getitem__(self, variable: str) -> int:
        offset, size = lib.variable(self.object._object, ".bss", variable)
        return int.from_bytes(self._bss[offset : offset + size], "little", signed=True)

    def __setitem__(self, variable: str, value: int) -> None:
        offset, size = lib.variable(self.object._object, ".bss", variable)
        self._bss[offset : offset + size] = value.to_bytes(size, "little", signed=True)


@contextmanager
def probing(
    name: str, *specs: Probe, tgid: int | None = None, attach: bool = True
) -> Iterator[Probing]:
    """Load the programs of tests/probes/NAME.bpf.c that ``specs`` need, and attach these.

    Only what process ``tgid`` does is counted, this one's by default.
    """
    data = compile_object(name).read_bytes()
    with ExitStack() as undo:
        opened = undo.enter_context(BpfObject(data, name))
        uses = [(choose_program(opened, spec), spec) for spec in specs]
        opened.select({program for program, _ in uses})
        assert prepare(opened, uses) == []
        opened.set_variable("traced_tgid", os.getpid() if tgid is None else tgid, ".bss")
        opened.load()
        size = -(-opened.data_bytes(".bss") // mmap.PAGESIZE) * mmap.PAGESIZE
        bss = undo.enter_context(mmap.mmap(opened.map_fd(".bss"), size))
        links = [Link(opened, program, spec) for program, spec in uses]
        for link in links:
            undo.callback(link.close)
            if attach:
                link.attach()
        yield Probing(opened, links, bss)


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Look again and again until it is so; fails after ten seconds (in a guest, 150)."""
    deadline = time.monotonic() + PATIENCE_SECONDS * time_factor()
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:g} s: {what}"
        time.sleep(0.005)


def open_descriptors() -> dict[str, str]:
    """Return what each descriptor of this process is, by number."""
    found = {}
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names, not paths
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        except FileNotFoundError:
            continue  # the folder's own
    return found
