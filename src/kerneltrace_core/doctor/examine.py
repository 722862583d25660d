"""Examine this machine and this process."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping

from kerneltrace_core.doctor.diagnosis import Backend, Diagnosis, Finding, System
from kerneltrace_core.doctor.groups import ProbeGroup, probe_groups, remedy_for
from kerneltrace_core.doctor.sharing import joins_by_socket, kernel_side_fact, pins_fact
from kerneltrace_core.doctor.surroundings import (
    capabilities_fact,
    extension_fact,
    lockdown_fact,
    memlock_fact,
    objects_fact,
    preemption_fact,
    procfs_fact,
    seccomp_fact,
    tracefs_fact,
)
from kerneltrace_core.kernel import btf
from kerneltrace_core.kernel.capabilities import NEEDED
from kerneltrace_core.kernel.config import read_config
from kerneltrace_core.kernel.features import FeatureProbes
from kerneltrace_core.kernel.privileges import Privileges, read_privileges
from kerneltrace_core.kernel.support import Support, Verdict, worst
from kerneltrace_core.requests import layout

__all__ = ["choose_backend", "examine", "examine_group", "read_btf"]

REGION_BYTES = layout.SLOTS_OFFSET + layout.SLOTS * layout.SLOT_BYTES

OVERRIDES = (
    "KERNELTRACE_ENABLED",
    "KERNELTRACE_BACKEND",
    "KERNELTRACE_PROBES",
    "KERNELTRACE_SHARE",
)


def examine(probes: FeatureProbes | None = None, *, btf_path: str = btf.VMLINUX) -> Diagnosis:
    """Ask everything; about 0.1 s. Never raises because of what it finds."""
    if probes is None:
        probes = FeatureProbes(read_privileges())
    config = read_config()
    btf_support, blob = read_btf(btf_path, config)
    groups = _examine_groups(probes, btf_support, blob)
    needs = (
        Finding("extension", extension_fact("_libbpf")),
        Finding("probe objects", objects_fact()),
        Finding("capabilities", capabilities_fact(probes.privileges)),
        Finding("bpf() call", probes.bpf_call()),
        Finding("BTF", btf_support),
        Finding("thread registration", probes.thread_registration()),
        Finding("task storage", probes.task_storage()),
        Finding("shared maps", probes.shared_maps()),
        Finding("kernel reads", probes.kernel_reads()),
        Finding("memory lock", probes.region_memory(REGION_BYTES)),
    )
    information = (
        Finding("step extension", extension_fact("_step")),
        Finding("ring buffer", probes.ring_buffer()),
        Finding("perf events", probes.perf_events()),
        Finding("uprobes", probes.uprobe_multi()),
        Finding("tracefs", tracefs_fact()),
        Finding("lockdown", lockdown_fact(probes.privileges)),
        Finding("seccomp", seccomp_fact(probes.privileges)),
        Finding("memlock limit", memlock_fact()),
        Finding("preemption", preemption_fact(btf_path)),
        Finding("procfs backend", procfs_fact()),
        Finding("kernel side", kernel_side_fact()),
        Finding("pins", pins_fact()),
    )
    joins = joins_by_socket()
    backend = choose_backend(groups, needs)
    return Diagnosis(
        system=_system(probes.privileges),
        backend=Backend("bpf", True, "joined by socket") if joins else backend,
        joins=joins,
        groups=groups,
        needs=needs,
        information=information,
    )


def read_btf(path: str, config: Mapping[str, str] | None) -> tuple[Support, bytes | None]:
    """Read the kernel's BTF; on failure say which of its three causes it is."""
    try:
        blob = btf.read_vmlinux(path)
    except FileNotFoundError as error:
        if config is not None and config.get("CONFIG_DEBUG_INFO_BTF", "n") == "y":
            remedy = "mount sysfs on /sys (the kernel has CONFIG_DEBUG_INFO_BTF)"
        else:
            remedy = "a kernel with CONFIG_DEBUG_INFO_BTF=y"
        return Support.no(f"no {path}", remedy, error.errno), None
    except PermissionError as error:
        return Support.no(f"{path}: permission denied", "make it readable", error.errno), None
    except (OSError, ValueError) as error:
        return Support.unknown(f"{path}: {error}"), None
    return Support.yes(), blob


def examine_group(
    group: ProbeGroup,
    probes: FeatureProbes,
    btf_support: Support,
    type_ids: Mapping[str, int] | None,
) -> Finding:
    """Load a minimal program for each tracepoint of ``group``.

    ``type_ids`` None: BTF could not be had, and ``btf_support`` says why.
    """

    def ask(name: str) -> Support:
        if type_ids is None:
            return btf_support
        if name not in type_ids:
            # With no tracepoint at all in BTF it is not this one that is missing.
            remedy = remedy_for(name) if type_ids else "kernel option CONFIG_BPF_EVENTS"
            return Support.no("not in this kernel", remedy)
        return probes.tracepoint(type_ids[name])

    parts = tuple(
        Finding(name, ask(name), required=name in group.required)
        for name in group.required + group.optional
    )
    return Finding(group.name, _judge_group(group, parts), parts=parts)


def _judge_group(group: ProbeGroup, parts: tuple[Finding, ...]) -> Support:
    needed = [part for part in parts if part.required]
    answer = worst(part.support for part in needed)
    if answer.works:
        lost = [part.name for part in parts if not part.support.works]
        return Support.yes(f"without {', '.join(lost)}: {group.without}" if lost else "")
    alike = [part.name for part in needed if part.support == answer]
    if len(alike) == len(needed):
        return answer  # one cause for all of them: it needs no names
    return Support(
        answer.verdict, f"{', '.join(alike)}: {answer.reason}", answer.remedy, answer.errno
    )


def _examine_groups(
    probes: FeatureProbes, btf_support: Support, blob: bytes | None
) -> tuple[Finding, ...]:
    groups = probe_groups()
    type_ids: dict[str, int] | None = None
    if blob is not None:
        names = {name for group in groups for name in group.required + group.optional}
        try:
            type_ids = btf.tracepoint_type_ids(blob, names)
        except ValueError as error:
            btf_support = Support.unknown(str(error))
    return tuple(examine_group(group, probes, btf_support, type_ids) for group in groups)


def choose_backend(groups: tuple[Finding, ...], needs: tuple[Finding, ...]) -> Backend:
    """Say what ``backend="auto"`` does with these findings.

    Only sched and what all groups need decide; any other group is simply left out.
    """
    deciding = [*needs, *(group for group in groups if group.name == "sched")]
    answer = worst(finding.support for finding in deciding)
    if answer.works:
        left_out = [group.name for group in groups if not group.support.works]
        return Backend("bpf", True, f"without {', '.join(left_out)}" if left_out else "")
    first = next(finding for finding in deciding if finding.support == answer)
    if answer.verdict is Verdict.NO:
        return Backend("procfs", True, f"{first.name}: {answer.reason}")
    return Backend("bpf", False, f"{first.name}: {answer.reason}; procfs if that fails")


def _system(privileges: Privileges) -> System:
    held = privileges.capabilities
    missing = held.missing(NEEDED) if held is not None else ()
    return System(
        kernel=platform.release(),
        machine=platform.machine(),
        python=platform.python_version(),
        executable=sys.executable,
        uid=os.geteuid(),
        missing_capabilities=missing,
        bounded=held is not None and not held.bounding.issuperset(missing),
        no_new_privs=privileges.seccomp.no_new_privs is True,
        overrides={name: os.environ[name] for name in OVERRIDES if name in os.environ},
    )
