"""Attach to the kernel's functions and hooks: kprobes, and what is loaded for its target."""

from __future__ import annotations

import errno
from pathlib import Path

from kerneltrace_core._native import attach as native
from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.errors import UnsupportedError
from kerneltrace_core.kernel.capabilities import NEEDED
from kerneltrace_core.kernel.symbols import function_names, nearest
from kerneltrace_core.session.attached import Attached, Descriptors
from kerneltrace_core.session.kernel_probes import (
    BtfTracepoint,
    Fentry,
    Fexit,
    FmodRet,
    Kprobe,
    Kretprobe,
    Lsm,
)
from kerneltrace_core.session.refusals import (
    ENOTSUPP,
    Cause,
    did_you_mean,
    explained,
    missing_option,
    perf_privilege,
    plain_cause,
    privilege,
    refuse,
)
from kerneltrace_core.session.tracepoints import run_on_perf_event, unknown_tracepoint

__all__ = [
    "attach_kprobe",
    "attach_loaded",
    "explain_unknown_target",
    "explain_unseen_target",
    "pmu_number",
]

PMUS = "/sys/bus/event_source/devices"
LSM_LIST = "/sys/kernel/security/lsm"
IN_BTF = "take a BtfTracepoint, or Fentry where the kernel allows it"


def pmu_number(name: str, attribute: str = "type") -> int | None:
    """Return a number of a performance monitoring unit in sysfs, or the bit of a format.

    None: the kernel has no such unit.
    """
    try:
        text = (Path(PMUS) / name / attribute).read_text().strip()
    except OSError:
        return None
    return int(text.partition(":")[2] or text)


def attach_kprobe(program_fd: int, program: ProgramFacts, spec: Kprobe | Kretprobe) -> Attached:
    """Attach to a kernel function's instruction or return."""
    kind = pmu_number("kprobe")
    if kind is None:
        cause = missing_option("CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS", otherwise=IN_BTF) or Cause(
            f"this kernel has no kprobes: {PMUS}/kprobe is not there",
            f"use a kernel with CONFIG_KPROBES=y and CONFIG_KPROBE_EVENTS=y, or {IN_BTF}",
            UnsupportedError,
        )
        raise refuse(spec, program, errno.ENOENT, cause)
    config, offset = 0, 0
    if isinstance(spec, Kprobe):
        offset = spec.offset
    else:
        config = 1 << (pmu_number("kprobe", "format/retprobe") or 0)
    with explained(spec, program, lambda code: _explain_kprobe(code, spec.function, offset)):
        event = native.open_perf_event(
            kind, config, name=spec.function.encode(), config2=offset, pid=-1, cpu=0
        )
        return Descriptors((run_on_perf_event(event, program_fd),))


def _explain_kprobe(code: int, function: str, offset: int) -> Cause:
    if code in (errno.EPERM, errno.EACCES):
        return perf_privilege(code, otherwise=IN_BTF)
    if code in (errno.ENOENT, errno.EADDRNOTAVAIL, errno.EINVAL, errno.EILSEQ):
        known = function_names()
        if known and function not in known:
            return Cause(
                "the kernel has no such function, or the compiler has inlined it",
                did_you_mean(nearest(function, known)),
            )
        if offset:
            return Cause(f"there is no instruction at offset {offset:#x} of it that can be probed")
        return Cause("the kernel does not let this function be probed (kprobes/blacklist)")
    if code == errno.EOPNOTSUPP:
        return missing_option("CONFIG_KRETPROBES") or plain_cause(code)
    return plain_cause(code)


def attach_loaded(
    program_fd: int, program: ProgramFacts, spec: BtfTracepoint | Fentry | Fexit | FmodRet | Lsm
) -> Attached:
    """Attach a program to what it was loaded for."""
    loaded_for = program.attach_target or program.section_target
    if loaded_for != spec.name:
        cause = Cause(
            f"the program was loaded for {loaded_for or 'nothing'}",
            "such a program has one target, which is chosen before load: "
            "name this probe when the session is made, or write a second program",
        )
        raise refuse(spec, program, None, cause)
    if isinstance(spec, Lsm):
        _check_lsm_runs(program, spec)

    def explain(code: int) -> Cause:
        if code in (errno.EPERM, errno.EACCES):
            return privilege(code, NEEDED)
        if code == errno.ENOENT:
            return Cause(
                "this kernel attaches such a program only once after it is loaded",
                "Linux 5.13 or later attaches it again; open another session",
                UnsupportedError,
            )
        if code == errno.EBUSY:
            return Cause(
                "the program is attached there already, or another one that changes its result is"
            )
        if code == errno.E2BIG:
            return Cause("as many programs as the kernel allows are attached to this function")
        if code in (ENOTSUPP, errno.EOPNOTSUPP):
            return missing_option("CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS") or Cause(
                "this kernel cannot attach to functions on this processor",
                "take a Kprobe",
                UnsupportedError,
            )
        return plain_cause(code)

    with explained(spec, program, explain):
        return Descriptors((native.open_tracepoint(program_fd, None),))


def _check_lsm_runs(program: ProgramFacts, spec: Lsm) -> None:
    """Refuse what the kernel would attach and never run."""
    try:
        modules = Path(LSM_LIST).read_text().strip().split(",")
    except OSError:
        return
    if "bpf" not in modules:
        cause = missing_option("CONFIG_BPF_LSM") or Cause(
            f"it would never run: bpf is not among the security modules ({','.join(modules)})",
            f"boot with lsm={','.join([*modules, 'bpf'])}",
            UnsupportedError,
        )
        raise refuse(spec, program, errno.EOPNOTSUPP, cause)


def explain_unknown_target(spec: BtfTracepoint | Fentry | Fexit | FmodRet | Lsm) -> Cause:
    """Explain ESRCH: the kernel's BTF has no such tracepoint, function or hook."""
    if isinstance(spec, BtfTracepoint):
        return unknown_tracepoint(spec.name)
    known = function_names()
    if isinstance(spec, Lsm):
        hooks = [name.removeprefix("bpf_lsm_") for name in known if name.startswith("bpf_lsm_")]
        if known and not hooks:
            return missing_option("CONFIG_BPF_LSM") or Cause(
                "this kernel has no LSM hooks for BPF",
                "use a kernel with CONFIG_BPF_LSM=y",
                UnsupportedError,
            )
        return Cause("the kernel has no such hook", did_you_mean(nearest(spec.name, hooks)))
    if spec.name in known:
        return Cause("the kernel's BTF does not describe this function", "take a Kprobe")
    return Cause(
        "the kernel has no such function, or the compiler has inlined it",
        did_you_mean(nearest(spec.name, known)),
    )


def explain_unseen_target(spec: BtfTracepoint | Fentry | Fexit | FmodRet | Lsm) -> Cause:
    """Explain what vmlinux's BTF lacks, to who may not look into its modules' (CAP_SYS_ADMIN)."""
    unknown = explain_unknown_target(spec)
    remedy = "for a target in a module, give it CAP_SYS_ADMIN"
    return Cause(
        f"{unknown.text} (its modules' types were not searched: that needs CAP_SYS_ADMIN)",
        "; ".join(each for each in (unknown.remedy, remedy) if each),
        unknown.kind,
    )
