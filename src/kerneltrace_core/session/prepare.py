"""Tell libbpf before load how programs will be attached."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.errors import AttachError, KernelTraceError, PrivilegeError, UnsupportedError
from kerneltrace_core.session.choosing import check_fit
from kerneltrace_core.session.functions import explain_unknown_target, explain_unseen_target
from kerneltrace_core.session.kernel_probes import (
    KPROBE,
    BtfTracepoint,
    Fentry,
    Fexit,
    FmodRet,
    Kprobe,
    Kretprobe,
    Lsm,
)
from kerneltrace_core.session.probe import Probe
from kerneltrace_core.session.process_probes import TRACE_UPROBE_MULTI, Uprobe, Uretprobe, Usdt
from kerneltrace_core.session.refusals import Cause, privilege, refuse
from kerneltrace_core.session.uprobes import uprobe_way

__all__ = ["prepare"]

LOADED_FOR = (BtfTracepoint, Fentry, Fexit, FmodRet, Lsm)
NO_BTF = Cause(
    "the kernel's BTF is not in /sys/kernel/btf/vmlinux nor beside the kernel",
    "use a kernel with CONFIG_DEBUG_INFO_BTF=y; in a container, make /sys visible",
    UnsupportedError,
)
IN_BINARIES = (*Uprobe.sections, *Uretprobe.sections, *Usdt.sections)


def prepare(
    opened: BpfObject, uses: Iterable[tuple[str, Probe]]
) -> list[tuple[str, Probe, KernelTraceError]]:
    """Make the programs of an object that is not loaded yet ready for their probes.

    ``uses``: program names with the probes they will be attached to. Programs of uprobe and USDT
    sections are made ready whether they are named or not, so that they can be attached later.
    Returns the optional probes that the kernel cannot have, whose programs are not loaded then.
    Reads the kernel's BTF (tens of milliseconds), as loading would. Raises AttachError.
    """
    refused: list[tuple[str, Probe, KernelTraceError]] = []
    decided: dict[str, Probe] = {}
    lost: set[str] = set()
    for program, spec in uses:
        try:
            _prepare(opened, program, spec, decided.get(program))
        except KernelTraceError as error:
            if not spec.optional:
                raise
            refused.append((program, spec, error))
            lost.add(program)
        else:
            decided[program] = spec
    for program in lost - decided.keys():
        opened.deselect(program)
    for facts in opened.programs():
        in_binaries = facts.prefix in IN_BINARIES and facts.type == KPROBE
        if facts.loads and in_binaries and facts.name not in decided and uprobe_way().multi:
            opened.set_attach_type(facts.name, TRACE_UPROBE_MULTI)
    return refused


def _prepare(opened: BpfObject, program: str, spec: Probe, other: Probe | None) -> None:
    facts = opened.program(program)
    if isinstance(spec, LOADED_FOR):
        check_fit(spec, facts)
        if facts.attach_target not in (None, spec.name):
            cause = Cause(
                f"it is for {facts.attach_target} already", "write a second program for this one"
            )
            raise refuse(spec, facts, errno.EINVAL, cause)
        try:
            opened.set_attach_target(program, spec.name)
        except PrivilegeError as error:
            code = error.errno or errno.EPERM
            cause = privilege(code, ("cap_bpf", "cap_perfmon"))
            if code == errno.EPERM:
                # Vmlinux's types are everybody's: what they lack is searched for in the modules'.
                code, cause = errno.ESRCH, explain_unseen_target(spec)
            raise refuse(spec, facts, code, cause) from error
        except AttachError as error:
            cause = NO_BTF if error.errno == errno.ENOENT else explain_unknown_target(spec)
            raise refuse(spec, facts, error.errno, cause) from error
        return
    in_binary = isinstance(spec, (Uprobe, Uretprobe, Usdt))
    if in_binary and isinstance(other, (Kprobe, Kretprobe)):
        cause = Cause(f"it is for {other} already", "write a second program for this one")
        raise refuse(spec, facts, errno.EINVAL, cause)
    check_fit(spec, facts)
    if in_binary and uprobe_way().multi:
        opened.set_attach_type(program, TRACE_UPROBE_MULTI)
