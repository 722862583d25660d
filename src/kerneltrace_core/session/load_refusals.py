"""Say why the kernel refused to load a program: which, what it was for, what is missing."""

from __future__ import annotations

import errno
import re
import time

from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.bpf.program import ProgramFacts, type_name
from kerneltrace_core.errors import KernelTraceError, LoadError, PrivilegeError
from kerneltrace_core.kernel.capabilities import NEEDED
from kerneltrace_core.kernel.features import FeatureProbes
from kerneltrace_core.kernel.privileges import Privileges, explain_refusal, read_privileges
from kerneltrace_core.kernel.support import Support, Verdict
from kerneltrace_core.session.functions import explain_unknown_target
from kerneltrace_core.session.kernel_probes import (
    LSM,
    MODIFY_RETURN,
    TRACE_FENTRY,
    TRACE_FEXIT,
    TRACING,
    BtfTracepoint,
    Fentry,
    Fexit,
    FmodRet,
    Lsm,
)
from kerneltrace_core.session.network_probes import (
    CGROUP_DEVICE,
    CGROUP_SKB,
    CGROUP_SOCK,
    CGROUP_SOCK_ADDR,
    CGROUP_SOCKOPT,
    CGROUP_SYSCTL,
    SCHED_CLS,
    SOCK_OPS,
    XDP,
)
from kerneltrace_core.session.refusals import code_name
from kerneltrace_core.session.sections import probe_of_section

__all__ = ["blamed_program", "explain_load"]

# libbpf names the program that it is working on: "libbpf: prog 'x': ...".
PROGRAM_IN_LOG = re.compile(r"\bprog '([^']+)'")
GIVEN_BACK_SECONDS = 0.5
NETWORK_TYPES = {
    SCHED_CLS, XDP, CGROUP_SKB, CGROUP_SOCK, SOCK_OPS, CGROUP_DEVICE, CGROUP_SOCK_ADDR,
    CGROUP_SYSCTL, CGROUP_SOCKOPT,
}  # fmt: skip
NETWORK_NEEDED = ("cap_bpf", "cap_net_admin")
CHANGES_TEXT = {TRACE_FENTRY: "fentry", TRACE_FEXIT: "fexit", MODIFY_RETURN: "fmod_ret"}
INSTEAD = "take a BtfTracepoint or RawTracepoint; or boot a kernel that is not locked down"


def blamed_program(error: KernelTraceError) -> str | None:
    """Return the program that libbpf was working on when it failed, if its lines say so."""
    lines: tuple[str, ...] = getattr(error, "log", ())
    named = [found.group(1) for line in lines for found in PROGRAM_IN_LOG.finditer(line)]
    return named[-1] if named else None


def explain_load(opened: BpfObject, error: LoadError | PrivilegeError) -> KernelTraceError:
    """Return a better error for one of ``opened.load()``, or the same where nothing is certain.

    To be called before the object is closed. Reads /proc and, for an unknown function, the names
    of all functions (0.1 s).
    """
    name = blamed_program(error)
    facts = next((each for each in opened.programs() if each.name == name), None)
    if facts is None:
        if isinstance(error, PrivilegeError):
            return _explain_privilege(opened, None, error)
        return error
    if isinstance(error, PrivilegeError):
        return _explain_privilege(opened, facts, error)
    act = f"load program {facts} of object {opened.name}"
    if error.errno == errno.ESRCH:
        target = probe_of_section(facts.name, facts.section)
        if isinstance(target, (BtfTracepoint, Fentry, Fexit, FmodRet, Lsm)):
            cause = explain_unknown_target(target)
            remedy = f" ({cause.remedy})" if cause.remedy else ""
            told = f"{act}: ESRCH: {target}: {cause.text}{remedy}"
            return LoadError(told, errno=error.errno, log=error.log)
    told = error.message.rpartition(": ")[2]
    if any("GPL-restricted function" in line for line in error.log):
        # kernel/bpf/verifier.c; what the object's section "license" says decides.
        told += ' (say what it may call: char LICENSE[] SEC("license") = "Dual MIT/GPL")'
    return LoadError(f"{act}: {told}", errno=error.errno, log=error.log)


def _explain_privilege(
    opened: BpfObject, facts: ProgramFacts | None, error: PrivilegeError
) -> PrivilegeError:
    code = error.errno or errno.EPERM
    privileges = read_privileges()
    if facts is None:
        loading = [each for each in opened.programs() if each.loads]
        needed = tuple(dict.fromkeys(name for each in loading for name in _needed(each)))
        act = f"load object {opened.name}"
    else:
        needed = _needed(facts)
        act = f"load program {facts} of object {opened.name}"
    why = explain_refusal(code, privileges, needed)
    reason, remedy = why.reason, why.remedy
    held = privileges.capabilities
    kind = _changes_text(facts)
    if kind is not None and held is not None and not held.missing(needed):
        mode = privileges.lockdown.mode
        locked = f" (lockdown is {mode})" if mode and mode != "none" else ""
        reason = f"this kernel lets nobody change its text{locked}, as {kind} programs do"
        remedy = INSTEAD
    elif why.verdict is Verdict.UNKNOWN and code == errno.EPERM:
        locked_memory = _locked_memory(privileges)
        if locked_memory.verdict is Verdict.NO:
            reason, remedy = locked_memory.reason, locked_memory.remedy
    told = reason if reason.startswith(code_name(code)) else f"{code_name(code)}: {reason}"
    return PrivilegeError(
        f"{act}: {told}" + (f" ({remedy})" if remedy else ""), errno=code, log=error.log
    )


def _locked_memory(privileges: Privileges) -> Support:
    """Ask for RLIMIT_MEMLOCK; what the refused object had is given back a moment later."""
    probes = FeatureProbes(privileges)
    end = time.monotonic() + GIVEN_BACK_SECONDS
    while True:
        answer = probes.locked_memory()
        if answer.verdict is not Verdict.UNKNOWN or time.monotonic() > end:
            return answer
        time.sleep(0.01)


def _needed(facts: ProgramFacts) -> tuple[str, ...]:
    return NETWORK_NEEDED if facts.type in NETWORK_TYPES else NEEDED


def _changes_text(facts: ProgramFacts | None) -> str | None:
    if facts is None:
        return None
    if facts.type == LSM:
        return type_name(LSM)
    return CHANGES_TEXT.get(facts.attach_type) if facts.type == TRACING else None
