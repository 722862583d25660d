"""Probes from section names: what an object says itself about where its programs belong."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.errors import AttachError, OptionError
from kerneltrace_core.session import kernel_probes as kernel
from kerneltrace_core.session import process_probes as process
from kerneltrace_core.session.attached import Attached, LibbpfLink
from kerneltrace_core.session.probe import Probe
from kerneltrace_core.session.refusals import Cause, explained, privilege

__all__ = ["BySection", "attach_by_section", "auto_probes", "probe_of_section"]

# libbpf knows how to attach these, and nothing here does.
LEFT_TO_LIBBPF = ("ksyscall", "kretsyscall", "kprobe.multi", "kretprobe.multi")
# Run by whoever has their descriptor, never attached.
NEVER_ATTACHED = ("syscall",)

NAMED: dict[str, Callable[..., Probe]] = {
    section: probe
    for probe in (
        kernel.RawTracepoint, kernel.BtfTracepoint, kernel.Fentry, kernel.Fexit, kernel.FmodRet,
        kernel.Lsm, kernel.Kretprobe,
    )
    for section in probe.sections
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Probe]] = {
    section: probe for probe in (process.Uprobe, process.Uretprobe) for section in probe.sections
}
OFFSET = re.compile(r"(?P<name>.+?)(?:\+(?P<offset>0x[0-9a-fA-F]+|\d+))?$")


@dataclass(frozen=True)
class BySection(Probe):
    """Attach a program as libbpf reads its section; made by ``"auto"`` for what has no spec."""

    section: str

    kind: ClassVar[str] = "section"
    program_types: ClassVar[frozenset[int]] = frozenset({kernel.KPROBE})

    def target(self) -> str:
        """Return the section."""
        return self.section


def _offset(text: str) -> tuple[str, int]:
    found = OFFSET.match(text)
    if found is None:
        return text, 0
    return found["name"], int(found["offset"] or "0", 0)


def probe_of_section(name: str, section: str, *, optional: bool = False) -> Probe | None:
    """Return the probe that the section of program ``name`` stands for; None if for none. Pure."""
    prefix, _, target = section.removeprefix("?").partition("/")
    parts = target.split(":")
    try:
        if prefix in kernel.Tracepoint.sections and target.count("/") == 1:
            category, _, event = target.partition("/")
            return kernel.Tracepoint(category, event, program=name, optional=optional)
        if prefix in NAMED and target:
            return NAMED[prefix](target, program=name, optional=optional)
        if prefix in kernel.Kprobe.sections and target:
            function, offset = _offset(target)
            return kernel.Kprobe(function, offset, program=name, optional=optional)
        if prefix in FUNCTIONS and len(parts) == 2:
            symbol, offset = _offset(parts[1])
            return FUNCTIONS[prefix](parts[0], symbol, offset, program=name, optional=optional)
        if prefix in process.Usdt.sections and len(parts) == 3:
            return process.Usdt(parts[0], parts[1], parts[2], program=name, optional=optional)
        if prefix in LEFT_TO_LIBBPF and target:
            return BySection(section, program=name, optional=optional)
    except OptionError:
        return None
    return None


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
            return privilege(code, ("cap_bpf", "cap_perfmon"))
        return Cause("the kernel cannot attach it there")

    with explained(spec, program, explain):
        return LibbpfLink(opened.attach_by_section(program.name))
