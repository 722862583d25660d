"""Feature probes: each does the thing itself, with the smallest object that will do.

A version number decides nothing; it is only told, so that a reader knows what to upgrade to.
Every probe closes what it made, attaches nothing, and never raises.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kerneltrace_core.errors import UnsupportedError
from kerneltrace_core.kernel.bpfcall import BpfCall, Instruction
from kerneltrace_core.kernel.btf import function_type_ids, read_vmlinux
from kerneltrace_core.kernel.capabilities import NEEDED
from kerneltrace_core.kernel.limits import format_bytes, memlock_raised, read_memlock
from kerneltrace_core.kernel.privileges import Privileges, explain_refusal
from kerneltrace_core.kernel.support import Support

__all__ = ["FeatureProbes"]

ARRAY = 2
ARRAY_OF_MAPS = 12
RINGBUF = 27
TASK_STORAGE = 29
NO_PREALLOC = 1 << 0
MMAPABLE = 1 << 10

KPROBE = 2
RAW_TRACEPOINT = 17
TRACING = 26
SYSCALL = 31
LSM = 29
SCHED_CLS = 3
TRACE_RAW_TP = 23
TRACE_FENTRY = 24
MODIFY_RETURN = 26
LSM_MAC = 27
TCX_INGRESS = 46
TRACE_UPROBE_MULTI = 48
SLEEPABLE = 1 << 4

HARDWARE, CPU_CYCLES = 0, 0
LSM_LIST = "/sys/kernel/security/lsm"

UNKNOWN_COMMAND = 0x7FFFFFFF

BPF_ONLY = ("cap_bpf",)


def minimal_btf() -> bytes:
    """Build BTF with the types ``int`` (id 1, 4 bytes) and ``u64`` (id 2, 8 bytes)."""
    strings = b"\0int\0u64\0"
    kind_int, signed = 1 << 24, 1 << 24
    types = struct.pack("=IIII", strings.index(b"int"), kind_int, 4, signed | 32)
    types += struct.pack("=IIII", strings.index(b"u64"), kind_int, 8, 64)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


class FeatureProbes:
    """Ask the kernel, with this thread's privileges.

    ``bpf`` is a seam for tests. Each method blocks for at most some milliseconds and
    returns a Support. Not thread-safe: ``region_memory`` may change RLIMIT_MEMLOCK for
    the moment of the probe.
    """

    def __init__(self, privileges: Privileges, bpf: BpfCall | None = None) -> None:
        self.privileges = privileges
        self.bpf = bpf if bpf is not None else BpfCall()

    def bpf_call(self) -> Support:
        """Tell whether bpf(2) reaches the kernel: an unknown command must give EINVAL."""
        try:
            self.bpf.call(UNKNOWN_COMMAND, bytes(8))
        except UnsupportedError as error:
            return Support.unknown(str(error))
        except OSError as error:
            if error.errno == errno.EINVAL:
                return Support.yes()
            if error.errno == errno.ENOSYS:
                return Support.no(
                    "ENOSYS: no bpf() system call",
                    "kernel option CONFIG_BPF_SYSCALL, or a seccomp profile that allows bpf",
                    error.errno,
                )
            why = explain_refusal(error.errno or 0, self.privileges, NEEDED)
            if not why.remedy and self.privileges.seccomp.mode == "filter":
                return Support.no(
                    f"{_code(error)}: a seccomp filter refuses bpf()",
                    "allow bpf in the seccomp profile (docker: --security-opt seccomp=...)",
                    error.errno,
                )
            return why
        return Support.unknown("bpf() took a command that does not exist (is it emulated?)")

    def mmapable_array(self) -> Support:
        """Create and map an array with BPF_F_MMAPABLE (5.5)."""

        def act() -> None:
            with self._array(mmap.PAGESIZE) as array:
                self.bpf.map_memory(array, mmap.PAGESIZE)

        return self._ask(act, BPF_ONLY, "mmap-able arrays", "5.5")

    def shared_maps(self) -> Support:
        """Create an array of maps whose inner map is an mmap-able array (5.5)."""

        def act() -> None:
            with self._array(mmap.PAGESIZE) as inner:
                _close(self.bpf.map_create(ARRAY_OF_MAPS, value=4, inner=inner))

        return self._ask(act, BPF_ONLY, "arrays of maps", "5.5")

    def task_storage(self) -> Support:
        """Create a task storage map (5.11)."""

        def act() -> None:
            with _closing(self.bpf.btf_load(minimal_btf())) as btf:
                _close(
                    self.bpf.map_create(TASK_STORAGE, entries=0, flags=NO_PREALLOC, btf=(btf, 1, 2))
                )

        return self._ask(act, BPF_ONLY, "task storage", "5.11")

    def ring_buffer(self) -> Support:
        """Create a ring buffer of one page (5.8)."""

        def act() -> None:
            _close(self.bpf.map_create(RINGBUF, key=0, value=0, entries=mmap.PAGESIZE))

        return self._ask(act, BPF_ONLY, "ring buffers", "5.8")

    def region_memory(self, size: int) -> Support:
        """Create an mmap-able array of ``size`` bytes: RLIMIT_MEMLOCK before 5.11, memory."""

        def act() -> None:
            with memlock_raised(), self._array(size):
                pass

        small = self.mmapable_array()
        if not small.works:
            return small
        answer = self._ask(act, BPF_ONLY, "mmap-able arrays", "5.5")
        if answer.works:
            return Support.yes(f"{format_bytes(size)} per process")
        if answer.errno == errno.EPERM:
            limit = read_memlock()
            told = format_bytes(limit.soft) if limit is not None else "could not tell"
            return Support.no(
                f"EPERM for {format_bytes(size)}: RLIMIT_MEMLOCK is {told}",
                "raise it: ulimit -l unlimited, LimitMEMLOCK=infinity, docker --ulimit memlock=-1",
                answer.errno,
            )
        return answer

    def kernel_reads(self) -> Support:
        """Load a program that calls bpf_probe_read_kernel (5.5)."""

        def act() -> None:
            _close(self.bpf.prog_load(RAW_TRACEPOINT, Instruction.read_kernel()))

        answer = self._ask(act, NEEDED, "bpf_probe_read_kernel", "5.5")
        # Locked down, the kernel does not refuse the program but hides the helper from it.
        if answer.errno == errno.EINVAL and self.privileges.lockdown.mode == "confidentiality":
            return explain_refusal(errno.EINVAL, self.privileges, NEEDED, reads_kernel=True)
        return answer

    def thread_registration(self) -> Support:
        """Load a SEC("syscall") program and run it once (5.14)."""

        def act() -> None:
            program = self.bpf.prog_load(SYSCALL, Instruction.return_zero(), flags=SLEEPABLE)
            with _closing(program):
                self.bpf.prog_run(program)

        return self._ask(act, BPF_ONLY, 'SEC("syscall") programs', "5.14")

    def tracepoint(self, btf_id: int) -> Support:
        """Load ``return 0`` as a tp_btf program for the typedef with this id in vmlinux BTF."""

        def act() -> None:
            _close(
                self.bpf.prog_load(
                    TRACING,
                    Instruction.return_zero(),
                    attach_type=TRACE_RAW_TP,
                    attach_btf_id=btf_id,
                )
            )

        return self._ask(act, NEEDED, None, "5.5")

    def perf_events(self) -> Support:
        """Open a software event on this thread, kernel included, disabled."""

        def act() -> None:
            _close(self.bpf.perf_event())

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
            with _closing(program):
                try:
                    _close(self.bpf.uprobe_multi_link(program, TRACE_UPROBE_MULTI, b"/"))
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
            with _closing(program):
                try:
                    _close(self.bpf.uprobe_multi_link(program, TRACE_UPROBE_MULTI, b"/", -1))
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
                _close(self.bpf.perf_probe(kind, b"/"))
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
            _close(self.bpf.perf_probe(kind, b"vfs_read"))

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

    def tcx(self) -> Support:
        """Ask for a tcx link on interface 0, which there is not: ENODEV is a yes (6.6)."""

        def act() -> None:
            with _closing(self.bpf.prog_load(SCHED_CLS, Instruction.return_zero())) as program:
                try:
                    _close(self.bpf.link_create(program, 0, TCX_INGRESS))
                except OSError as error:
                    if error.errno != errno.ENODEV:
                        raise

        return self._ask(act, ("cap_bpf", "cap_net_admin"), "tcx links", "6.6")

    def hardware_events(self) -> Support:
        """Open a disabled event of the processor's cycles on this thread."""

        def act() -> None:
            _close(self.bpf.perf_event(HARDWARE, CPU_CYCLES))

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
            _close(
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

    @contextmanager
    def _array(self, size: int) -> Iterator[int]:
        with _closing(self.bpf.map_create(ARRAY, value=size, flags=MMAPABLE)) as descriptor:
            yield descriptor

    def _ask(
        self,
        act: Callable[[], None],
        wanted: tuple[str, ...],
        feature: str | None,
        since: str,
    ) -> Support:
        """Do ``act``; ``feature`` is what EINVAL says is lacking (None: EINVAL is odd)."""
        try:
            act()
        except UnsupportedError as error:
            return Support.unknown(str(error))
        except OSError as error:
            number = error.errno or 0
            if number in (errno.EPERM, errno.EACCES):
                return explain_refusal(number, self.privileges, wanted)
            if number == errno.ENOSYS:
                return Support.no("ENOSYS: no such system call", errno=number)
            if number in (errno.EINVAL, errno.EOPNOTSUPP) and feature is not None:
                return Support.no(
                    f"{_code(error)}: this kernel has no {feature}",
                    f"Linux {since} or later",
                    number,
                )
            if number in (errno.EMFILE, errno.ENFILE):
                return Support.unknown(
                    f"{_code(error)}: no descriptor left", "raise LimitNOFILE / ulimit -n", number
                )
            return Support.unknown(f"{_code(error)}: {error.strerror}", errno=number)
        return Support.yes()


def _unit(name: str) -> int | None:
    """Return the number of a performance monitoring unit; None if the kernel has none so named."""
    try:
        return int(Path(f"/sys/bus/event_source/devices/{name}/type").read_text())
    except (OSError, ValueError):
        return None


def _no_unit(name: str, options: str) -> Support:
    return Support.no(f"this kernel has no {name}s", f"a kernel with {options}", errno.ENOENT)


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        _close(descriptor)


def _close(descriptor: int) -> None:
    os.close(descriptor)


def _code(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, f"errno {error.errno}")
