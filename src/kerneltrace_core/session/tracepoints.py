"""Attach to tracepoints: classic ones through tracefs and perf events, others directly."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from pathlib import Path

from kerneltrace_core._native import attach as native
from kerneltrace_core._native.held import Descriptor
from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.errors import AttachError, PrivilegeError, UnsupportedError
from kerneltrace_core.kernel import btf, tracefs
from kerneltrace_core.kernel.capabilities import NEEDED
from kerneltrace_core.kernel.symbols import nearest
from kerneltrace_core.session.attached import Attached, Descriptors
from kerneltrace_core.session.kernel_probes import RawTracepoint, Tracepoint
from kerneltrace_core.session.refusals import (
    Cause,
    did_you_mean,
    explained,
    missing_option,
    perf_privilege,
    plain_cause,
    privilege,
    refuse,
)

__all__ = ["attach_raw_tracepoint", "attach_tracepoint", "known_tracepoints", "run_on_perf_event"]

TYPE_TRACEPOINT = 2
PERF_EVENT_LINK = 41
OTHERWISE = "take a BtfTracepoint or RawTracepoint, which need no tracefs"
MOUNT = "mount -t tracefs tracefs /sys/kernel/tracing"
READABLE = "mount -o remount,mode=0750,gid=GROUP /sys/kernel/tracing"
UNMOUNTED = Cause("tracefs is not mounted", f"{MOUNT}, or {OTHERWISE}", UnsupportedError)
UNREADABLE = Cause(
    "permission denied reading tracefs", f"{OTHERWISE}; or {READABLE}", PrivilegeError
)


def run_on_perf_event(event: Descriptor, program_fd: int, cookie: int | None = None) -> Descriptor:
    """Let a program run on a perf event and start it; what to keep, the rest is closed.

    A perf link (Linux 5.15), else the event itself, which has no cookie: with one, EINVAL is
    raised there. ``event`` is taken over, also on failure.
    """
    with ExitStack() as undo:
        undo.callback(event.close)
        try:
            link = native.create_link(program_fd, event.fd, PERF_EVENT_LINK, cookie=cookie or 0)
        except AttachError as error:
            if error.errno != errno.EINVAL or cookie is not None:
                raise
            native.set_perf_program(event.fd, program_fd)
            native.enable_perf_event(event.fd)
            undo.pop_all()
            return event
        undo.callback(link.close)
        native.enable_perf_event(event.fd)
        undo.pop_all()
        event.close()  # the link holds the event
        return link


def attach_tracepoint(program_fd: int, program: ProgramFacts, spec: Tracepoint) -> Attached:
    """Attach to a classic tracepoint."""
    number = _tracepoint_id(program, spec)
    with explained(spec, program, _explain_perf):
        event = native.open_perf_event(TYPE_TRACEPOINT, number, pid=-1, cpu=0)
        return Descriptors((run_on_perf_event(event, program_fd),))


def _tracepoint_id(program: ProgramFacts, spec: Tracepoint) -> int:
    try:
        mounted = tracefs.find_tracefs()
    except PermissionError as error:
        raise refuse(spec, program, error.errno, UNREADABLE) from error
    if mounted is None:
        cause = missing_option("CONFIG_TRACING", "CONFIG_EVENT_TRACING") or UNMOUNTED
        raise refuse(spec, program, errno.ENOENT, cause)
    try:
        return tracefs.read_tracepoint_id(mounted, spec.category, spec.name)
    except PermissionError as error:
        raise refuse(spec, program, error.errno, UNREADABLE) from error
    except FileNotFoundError as error:
        raise refuse(spec, program, error.errno, _explain_unknown(mounted, spec)) from error
    except (OSError, ValueError) as error:
        code = getattr(error, "errno", None)
        raise refuse(spec, program, code, Cause(f"read its id in tracefs: {error}")) from error


def _explain_unknown(mounted: Path, spec: Tracepoint) -> Cause:
    if spec.category == "syscalls" and (cause := missing_option("CONFIG_FTRACE_SYSCALLS")):
        return cause
    text = "the kernel has no such tracepoint"
    try:
        categories = tracefs.category_names(mounted)
        if spec.category not in categories:
            text = f"the kernel has no tracepoint category {spec.category}"
        own = tracefs.tracepoint_names(mounted, spec.category)
        found = [f"{spec.category}:{name}" for name in nearest(spec.name, own)]
        found = found or [
            f"{category}:{spec.name}"
            for category in categories
            if spec.name in tracefs.tracepoint_names(mounted, category)
        ]
        found = found or ([] if own else nearest(spec.category, categories))
    except OSError:
        found = []
    return Cause(text, did_you_mean(found))


def _explain_perf(code: int) -> Cause:
    if code in (errno.EPERM, errno.EACCES):
        return perf_privilege(code, otherwise=OTHERWISE)
    if code == errno.ENOSYS:
        return missing_option("CONFIG_PERF_EVENTS") or Cause("the kernel has no perf events")
    if code == errno.EINVAL:
        return Cause("the kernel does not take this program here")
    return plain_cause(code)


def attach_raw_tracepoint(program_fd: int, program: ProgramFacts, spec: RawTracepoint) -> Attached:
    """Attach to a raw tracepoint."""

    def explain(code: int) -> Cause:
        if code in (errno.EPERM, errno.EACCES):
            return privilege(code, NEEDED)
        if code == errno.ENOENT:
            return unknown_tracepoint(spec.name)
        if code == errno.EINVAL:
            return Cause("the program reads more arguments than this tracepoint has")
        return plain_cause(code)

    with explained(spec, program, explain):
        return Descriptors((native.open_tracepoint(program_fd, spec.name),))


def known_tracepoints() -> list[str]:
    """Return the tracepoints that the kernel's BTF describes; none if it cannot be read."""
    try:
        return btf.tracepoint_names(btf.read_vmlinux())
    except (OSError, ValueError):
        return []


def unknown_tracepoint(name: str) -> Cause:
    """Explain that a raw or BTF tracepoint is not there."""
    if name.startswith(("sys_enter_", "sys_exit_")):
        kind = "_".join(name.split("_")[:2])
        return Cause(
            "single system calls have classic tracepoints only",
            f'take {kind} and look at the number, or Tracepoint("syscalls", "{name}")',
        )
    return Cause(
        "the kernel has no such tracepoint", did_you_mean(nearest(name, known_tracepoints()))
    )
