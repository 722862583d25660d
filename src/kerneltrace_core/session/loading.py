"""Load an object so that a program that nobody insists on cannot spoil the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.errors import KernelTraceError, LoadError, PrivilegeError
from kerneltrace_core.session.load_refusals import blamed_program, explain_load
from kerneltrace_core.session.probe import Probe

__all__ = ["Loaded", "Planned", "load"]


class Planned(NamedTuple):
    """An object that is configured and not loaded, and which program is for which probe."""

    object: BpfObject
    probes: list[tuple[Probe, str]]

    def optional_programs(self) -> set[str]:
        """Return the programs of which every probe is optional."""
        insisted = {program for probe, program in self.probes if not probe.optional}
        return {program for _, program in self.probes} - insisted


class Loaded(NamedTuple):
    """A loaded object, its probes, and why which programs were left out."""

    object: BpfObject
    probes: list[tuple[Probe, str]]
    refused: dict[str, KernelTraceError]


def load(plan: Callable[[frozenset[str]], Planned]) -> Loaded:
    """Load what ``plan`` makes when it is told which programs to leave out.

    A program that the kernel refuses is left out if all its probes are optional. Blocks for tens
    of milliseconds, once more for each program that is left out. Raises LoadError,
    PrivilegeError; nothing stays open then.
    """
    refused: dict[str, KernelTraceError] = {}
    while True:
        opened, probes = planned = plan(frozenset(refused))
        try:
            opened.load()
        except (LoadError, PrivilegeError) as error:
            culprit = blamed_program(error)
            with opened:
                explained = explain_load(opened, error)
            if culprit is None or culprit in refused or culprit not in planned.optional_programs():
                if explained is error:
                    raise
                raise explained from error
            refused[culprit] = explained
        except BaseException:
            opened.close()
            raise
        else:
            return Loaded(opened, probes, refused)
