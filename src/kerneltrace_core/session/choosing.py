"""Which program of an object a probe is for, and whether the two fit together."""

from __future__ import annotations

import errno

from kerneltrace_core.bpf.program import ProgramFacts, Programs, type_name
from kerneltrace_core.kernel.symbols import nearest
from kerneltrace_core.session.network_probes import Cgroup, Tc, Xdp
from kerneltrace_core.session.probe import Probe
from kerneltrace_core.session.process_probes import TRACE_UPROBE_MULTI, PerfEvent, Usdt
from kerneltrace_core.session.refusals import Cause, did_you_mean, refuse

__all__ = ["check_fit", "choose_program"]

# What is behind the slash of their sections is not what the spec says.
FREE_SECTIONS = (Cgroup, PerfEvent, Tc, Xdp)
ARTICLES = {"XDP": "an", "LSM": "an"}


def choose_program(opened: Programs, spec: Probe) -> str:
    """Return the name of the program that a probe is for, by name, section or kind of section.

    Raises AttachError, before any system call: none, several, or one of another type.
    """
    programs = opened.programs()
    chosen = _named(opened, programs, spec) if spec.program else _fitting(opened, programs, spec)
    check_fit(spec, chosen)
    return chosen.name


def _named(opened: Programs, programs: tuple[ProgramFacts, ...], spec: Probe) -> ProgramFacts:
    wanted = spec.program or ""
    for each in programs:
        if each.name == wanted:
            return each
    found = [each for each in programs if each.section.removeprefix("?") == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(each.name for each in found)
        raise refuse(spec, wanted, None, Cause("several programs have this section", f"{names}?"))
    known = [name for each in programs for name in (each.name, each.section)]
    hint = did_you_mean(nearest(wanted, known)) or f"it has {_listed(programs)}"
    cause = Cause(f"object {opened.name} has no program of that name or section", hint)
    raise refuse(spec, wanted, errno.ENOENT, cause)


def _fitting(opened: Programs, programs: tuple[ProgramFacts, ...], spec: Probe) -> ProgramFacts:
    of_kind = [each for each in programs if each.prefix in spec.sections]
    targets = spec.section_targets()
    tries = [
        [each for each in of_kind if each.section_target in targets],
        [each for each in of_kind if not each.section_target],
    ]
    if isinstance(spec, FREE_SECTIONS):
        tries.append(of_kind)
    if isinstance(spec, Usdt):
        tries.append([each for each in programs if each.section in ("uprobe", "uprobe.s")])
    for found in tries:
        if len(found) == 1:
            return found[0]
        if found:
            cause = Cause(f"{_listed(tuple(found))} would do", "say which: program=...")
            raise refuse(spec, "(not given)", None, cause)
    cause = Cause(
        f"no program of object {opened.name} is made for it", f"it has {_listed(programs)}"
    )
    raise refuse(spec, "(not given)", errno.ENOENT, cause)


def _listed(programs: tuple[ProgramFacts, ...]) -> str:
    return ", ".join(map(str, programs)) or "no programs"


def check_fit(spec: Probe, program: ProgramFacts) -> None:
    """Refuse a program that the kernel would not take for this probe. Raises AttachError."""
    if program.type not in spec.program_types:
        name = type_name(program.type)
        article = ARTICLES.get(name, "a")
        cause = Cause(
            f"it is {article} {name} program",
            f'for {spec.kind} take a program of SEC("{spec.sections[0]}")',
        )
        raise refuse(spec, program, errno.EINVAL, cause)
    if spec.attach_types and program.attach_type not in spec.attach_types:
        if program.attach_type == TRACE_UPROBE_MULTI:
            cause = Cause(
                "it was loaded for uprobe_multi links",
                "name this probe when the session is made, or use a program of "
                f'SEC("{spec.sections[0]}")',
            )
        else:
            cause = Cause(
                f"its section makes it something else than a {spec.kind}",
                f'use SEC("{spec.sections[0]}/...")',
            )
        raise refuse(spec, program, errno.EINVAL, cause)
