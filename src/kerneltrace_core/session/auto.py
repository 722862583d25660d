"""Probes from section names: what an object says itself about where its programs belong."""

from __future__ import annotations

import errno

from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.errors import AttachError
from kerneltrace_core.session.attached import Attached, BySectionLink
from kerneltrace_core.session.probe import Probe
from kerneltrace_core.session.refusals import Cause, explained, perf_privilege
from kerneltrace_core.session.sections import BySection, probe_of_section

__all__ = ["attach_by_section", "auto_probes"]

# Run by whoever has their descriptor, never attached.
NEVER_ATTACHED = ("syscall",)


def auto_probes(opened: BpfObject, *, optional: bool = False) -> tuple[Probe, ...]:
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


def attach_by_section(opened: BpfObject, program: ProgramFacts, spec: BySection) -> Attached:
    """Attach as libbpf reads the section."""

    def explain(code: int) -> Cause:
        if code in (errno.EPERM, errno.EACCES):
            return perf_privilege(code)
        return Cause("the kernel cannot attach it there")

    with explained(spec, program, explain):
        return BySectionLink(opened.attach_by_section(program.name))
