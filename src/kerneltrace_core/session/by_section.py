"""Attach what has no way of its own here as libbpf reads its section."""

from __future__ import annotations

import errno

from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.session.attached import Attached, BySectionLink
from kerneltrace_core.session.refusals import Cause, explained, perf_privilege
from kerneltrace_core.session.sections import BySection

__all__ = ["attach_by_section"]


def attach_by_section(opened: BpfObject, program: ProgramFacts, spec: BySection) -> Attached:
    """Attach as libbpf reads the section."""

    def explain(code: int) -> Cause:
        if code in (errno.EPERM, errno.EACCES):
            return perf_privilege(code)
        return Cause("the kernel cannot attach it there")

    with explained(spec, program, explain):
        return BySectionLink(opened.attach_by_section(program.name))
