"""Feature probes of what attaching needs, each by the thing itself; see features."""

from __future__ import annotations

import errno
from pathlib import Path

from kerneltrace_core.kernel.asking import Asking, close, closing
from kerneltrace_core.kernel.bpfcall import Instruction
from kerneltrace_core.kernel.btf import function_type_ids, read_vmlinux
from kerneltrace_core.kernel.capabilities import NEEDED
from kerneltrace_core.kernel.support import Support

__all__ = ["AttachProbes"]

SCHED_CLS = 3
KPROBE = 2
TRACING = 26
LSM = 29
TRACE_FENTRY = 24
MODIFY_RETURN = 26
LSM_MAC = 27
PERF_EVENT_LINK = 41
TCX_INGRESS = 46
TRACE_UPROBE_MULTI = 48

HARDWARE, CPU_CYCLES = 0, 0
LSM_LIST = "/sys/kernel/security/lsm"


class AttachProbes(Asking):
    """Ask what programs can be attached to here. Attaches nothing, closes what it made."""

    def perf_events(self) -> Support:
        """Open a software event on this thread, kernel included, disabled."""

        def act() -> None:
            close(self.bpf.perf_event())

        answer = self._ask(act, ("cap_perfmon",), None, "")
        if answer.errno in (errno.EACCES, errno.EPERM) and not answer.remedy:
            return Support.no(
                f"{errno.errorcode[answer.errno]} by kernel.perf_event_paranoid",
                "CAP_SYS_ADMIN, or sysctl kernel.perf_event_paranoid=2",
                answer.errno,
            )
        return answer

    def uprobe_multi(self) -> Support:
        """Ask for a uprobe_multi link on ``/``: not a file, so EBADF is a yes (6.6)."""

        def act() -> None:
            code = Instruction.return_zero()
            program = self.bpf.prog_load(KPROBE, code, attach_type=TRACE_UPROBE_MULTI)
            with closing(program):
                try:
                    close(self.bpf.uprobe_multi_link(program, TRACE_UPROBE_MULTI, b"/"))
                except OSError as error:
                    if error.errno != errno.EBADF:
                        raise

        return self._ask(act, NEEDED, "uprobe_multi links", "6.6")

    def uprobe_multi_by_process(self) -> Support:
        """Ask for one with an impossible process: EINVAL says that the filter is by process.

        Before 6.10, and 6.6.33, the kernel looks at that process's first thread only and
        meets the path first.
        """
        supported = self.uprobe_multi()
        if not supported.works:
            return supported
        by_thread = True

        def act() -> None:
            nonlocal by_thread
            code = Instruction.return_zero()
            program = self.bpf.prog_load(KPROBE, code, attach_type=TRACE_UPROBE_MULTI)
            with closing(program):
                try:
                    close(self.bpf.uprobe_multi_link(program, TRACE_UPROBE_MULTI, b"/", -1))
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.EBADF, errno.ESRCH):
                        raise
                    by_thread = error.errno != errno.EINVAL

        answer = self._ask(act, NEEDED, None, "")
        if answer.works and by_thread:
            return Support.no(
                "this kernel's uprobe_multi links filter by thread",
                "Linux 6.10, or 6.6.33 or later",
                errno.EINVAL,
            )
        return answer

    def uprobes(self) -> Support:
        """Open a uprobe the perf way; on ``/``, which is not a file: EINVAL is a yes."""
        kind = _unit("uprobe")
        if kind is None:
            return _no_unit("uprobe", "CONFIG_UPROBE_EVENTS")

        def act() -> None:
            try:
                close(self.bpf.perf_probe(kind, b"/"))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise

        return self._ask(act, ("cap_sys_admin",), None, "")

    def kprobe(self) -> Support:
        """Open a disabled kprobe on a function that every kernel has."""
        kind = _unit("kprobe")
        if kind is None:
            return _no_unit("kprobe", "CONFIG_KPROBES and CONFIG_KPROBE_EVENTS")

        def act() -> None:
            close(self.bpf.perf_probe(kind, b"vfs_read"))

        return self._ask(act, ("cap_perfmon",), None, "")

    def fentry(self) -> Support:
        """Load ``return 0`` for the entry of a function that every kernel has (5.5)."""
        return self._tracing("vfs_read", TRACE_FENTRY)

    def fmod_ret(self) -> Support:
        """Load ``return 0`` to change what a security hook returns (5.7)."""
        return self._tracing("security_file_open", MODIFY_RETURN)

    def lsm(self) -> Support:
        """Load ``return 0`` for a security hook (5.7), and look whether it would ever run."""
        answer = self._tracing("bpf_lsm_file_open", LSM_MAC, LSM)
        try:
            active = Path(LSM_LIST).read_text().strip()
        except OSError:
            return answer
        if answer.works and "bpf" not in active.split(","):
            return Support.no(
                f"bpf is not among the security modules ({active})",
                f"boot with lsm={active},bpf",
                errno.EOPNOTSUPP,
            )
        return answer

    def perf_links(self) -> Support:
        """Ask for a link to a perf event that is none: EBADF is a yes (5.15)."""

        def act() -> None:
            with closing(self.bpf.prog_load(KPROBE, Instruction.return_zero())) as program:
                try:
                    close(self.bpf.link_create(program, 0xFFFFFFFF, PERF_EVENT_LINK))
                except OSError as error:
                    if error.errno != errno.EBADF:
                        raise

        return self._ask(act, NEEDED, "perf links and attach cookies", "5.15")

    def tcx(self) -> Support:
        """Ask for a tcx link on interface 0, which there is not: ENODEV is a yes (6.6)."""

        def act() -> None:
            with closing(self.bpf.prog_load(SCHED_CLS, Instruction.return_zero())) as program:
                try:
                    close(self.bpf.link_create(program, 0, TCX_INGRESS))
                except OSError as error:
                    if error.errno != errno.ENODEV:
                        raise

        return self._ask(act, ("cap_bpf", "cap_net_admin"), "tcx links", "6.6")

    def hardware_events(self) -> Support:
        """Open a disabled event of the processor's cycles on this thread."""

        def act() -> None:
            close(self.bpf.perf_event(HARDWARE, CPU_CYCLES))

        answer = self._ask(act, ("cap_perfmon",), "hardware events", "")
        if answer.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
            return Support.no(
                f"{errno.errorcode[answer.errno]}: no counters of the processor are there",
                "a machine, not a virtual one without them; or a software event",
                answer.errno,
            )
        return answer

    def _tracing(self, function: str, attach_type: int, prog_type: int = TRACING) -> Support:
        try:
            found = function_type_ids(read_vmlinux(), [function])
        except (OSError, ValueError) as error:
            return Support.unknown(f"the kernel's BTF cannot be read: {error}")
        if function not in found:
            return Support.no(
                f"the kernel's BTF has no function {function}",
                "a kernel with this option" if prog_type == TRACING else "CONFIG_BPF_LSM=y",
                errno.ESRCH,
            )

        def act() -> None:
            code = Instruction.return_zero()
            number = found[function]
            close(
                self.bpf.prog_load(prog_type, code, attach_type=attach_type, attach_btf_id=number)
            )

        answer = self._ask(act, NEEDED, None, "")
        held = self.privileges.capabilities
        refused = answer.errno in (errno.EPERM, errno.EACCES)
        if refused and held is not None and not held.missing(NEEDED):
            mode = self.privileges.lockdown.mode
            locked = f", lockdown is {mode}" if mode and mode != "none" else ""
            return Support.no(
                f"EPERM: this kernel lets nobody change its text{locked}",
                "take tracepoints; or boot a kernel that is not locked down",
                answer.errno,
            )
        return answer


def _unit(name: str) -> int | None:
    """Return the number of a performance monitoring unit; None if the kernel has none so named."""
    try:
        return int(Path(f"/sys/bus/event_source/devices/{name}/type").read_text())
    except (OSError, ValueError):
        return None


def _no_unit(name: str, options: str) -> Support:
    return Support.no(f"this kernel has no {name}s", f"a kernel with {options}", errno.ENOENT)
