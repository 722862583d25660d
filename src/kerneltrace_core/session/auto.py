"""Probes from section names: what an object says itself about where its programs belong."""

from __future__ import annotations

import errno

from kerneltrace_core.bpf.program import ProgramFacts, Programs
from kerneltrace_core.errors import AttachError
from kerneltrace_core.session.probe import Probe
from kerneltrace_core.session.sections import probe_of_section

__all__ = ["auto_probes"]

# Run by whoever has their descriptor, never attached.
NEVER_ATTACHED = ("syscall",)


def auto_probes(opened: Programs, *, optional: bool = False) -> tuple[Probe, ...]:
    """Return a probe for each program that is to be loaded, by its section.

    SEC("syscall") programs are passed over: they are run, not attached. Raises AttachError that
    names the programs whose sections do not say where they belong.
    """
    found: list[Probe] = []
    unclear: list[ProgramFacts] = []
    for each in opened.programs():
        if not each.loads or each.prefix in NEVER_ATTACHED:
            continue
        probe = probe_of_section(each.name, each.section, optional=optional)
        if probe is None:
            unclear.append(each)
        else:
            found.append(probe)
    if unclear and not optional:
        raise AttachError(
            f"attach object {opened.name} by section: {', '.join(map(str, unclear))} "
            'do not say where they belong (give probes=[...] instead of "auto", '
            'or write a whole section: SEC("kprobe/do_unlinkat"))',
            errno=errno.EINVAL,
        )
    return tuple(found)
