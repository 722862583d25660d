"""Feature probes: each does the thing itself, with the smallest object that will do.

A version number decides nothing; it is only told, so that a reader knows what to upgrade to.
Every probe closes what it made, attaches nothing, and never raises.
"""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from kerneltrace_core.errors import UnsupportedError
from kerneltrace_core.kernel.asking import close, closing, code_name
from kerneltrace_core.kernel.attach_features import AttachProbes
from kerneltrace_core.kernel.bpfcall import Instruction
from kerneltrace_core.kernel.capabilities import NEEDED
from kerneltrace_core.kernel.limits import format_bytes, memlock_raised, read_memlock
from kerneltrace_core.kernel.privileges import explain_refusal
from kerneltrace_core.kernel.support import Support

__all__ = ["FeatureProbes"]

ARRAY = 2
ARRAY_OF_MAPS = 12
RINGBUF = 27
TASK_STORAGE = 29
NO_PREALLOC = 1 << 0
MMAPABLE = 1 << 10

RAW_TRACEPOINT = 17
TRACING = 26
SYSCALL = 31
TRACE_RAW_TP = 23
SLEEPABLE = 1 << 4

# Below the bits that Linux 7 takes for flags of the call, and answers E2BIG to.
UNKNOWN_COMMAND = 0x7FFF

BPF_ONLY = ("cap_bpf",)
# A limit that is larger than this is not tried out.
MEMLOCK_TRIED_BYTES = 64 << 20
RAISE_MEMLOCK = "raise it: ulimit -l unlimited, LimitMEMLOCK=infinity, docker --ulimit memlock=-1"


def minimal_btf() -> bytes:
    """Build BTF with the types ``int`` (id 1, 4 bytes) and ``u64`` (id 2, 8 bytes)."""
    strings = b"\0int\0u64\0"
    kind_int, signed = 1 << 24, 1 << 24
    types = struct.pack("=IIII", strings.index(b"int"), kind_int, 4, signed | 32)
    types += struct.pack("=IIII", strings.index(b"u64"), kind_int, 8, 64)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


class FeatureProbes(AttachProbes):
    """Ask the kernel, with this thread's privileges.

    ``bpf`` is a seam for tests. Each method blocks for at most some milliseconds and
    returns a Support. Not thread-safe: ``region_memory`` may change RLIMIT_MEMLOCK for
    the moment of the probe.
    """

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
                    f"{code_name(error)}: a seccomp filter refuses bpf()",
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
                close(self.bpf.map_create(ARRAY_OF_MAPS, value=4, inner=inner))

        return self._ask(act, BPF_ONLY, "arrays of maps", "5.5")

    def task_storage(self) -> Support:
        """Create a task storage map (5.11)."""

        def act() -> None:
            with closing(self.bpf.btf_load(minimal_btf())) as btf:
                close(
                    self.bpf.map_create(TASK_STORAGE, entries=0, flags=NO_PREALLOC, btf=(btf, 1, 2))
                )

        return self._ask(act, BPF_ONLY, "task storage", "5.11")

    def ring_buffer(self) -> Support:
        """Create a ring buffer of one page (5.8)."""

        def act() -> None:
            close(self.bpf.map_create(RINGBUF, key=0, value=0, entries=mmap.PAGESIZE))

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
                RAISE_MEMLOCK,
                answer.errno,
            )
        return answer

    def locked_memory(self) -> Support:
        """Tell whether RLIMIT_MEMLOCK is no obstacle: maps are charged to it before 5.11.

        Creates an array just larger than the limit, if that is not too much to try. Yes also
        where there is no limit.
        """
        limit = read_memlock()
        if limit is None or limit.soft is None or limit.soft > MEMLOCK_TRIED_BYTES:
            return Support.yes()
        size = limit.soft + mmap.PAGESIZE

        def act() -> None:
            with self._array(size):
                pass

        small = self.mmapable_array()
        if not small.works:
            return small
        answer = self._ask(act, BPF_ONLY, "mmap-able arrays", "5.5")
        if answer.errno == errno.EPERM:
            return Support.no(
                f"EPERM: RLIMIT_MEMLOCK is {format_bytes(limit.soft)}, and this kernel charges "
                "maps and programs to it",
                RAISE_MEMLOCK,
                answer.errno,
            )
        return answer

    def kernel_reads(self) -> Support:
        """Load a program that calls bpf_probe_read_kernel (5.5)."""

        def act() -> None:
            close(self.bpf.prog_load(RAW_TRACEPOINT, Instruction.read_kernel()))

        answer = self._ask(act, NEEDED, "bpf_probe_read_kernel", "5.5")
        # Locked down, the kernel does not refuse the program but hides the helper from it.
        if answer.errno == errno.EINVAL and self.privileges.lockdown.mode == "confidentiality":
            return explain_refusal(errno.EINVAL, self.privileges, NEEDED, reads_kernel=True)
        return answer

    def thread_registration(self) -> Support:
        """Load a SEC("syscall") program and run it once (5.14)."""

        def act() -> None:
            program = self.bpf.prog_load(SYSCALL, Instruction.return_zero(), flags=SLEEPABLE)
            with closing(program):
                self.bpf.prog_run(program)

        return self._ask(act, BPF_ONLY, 'SEC("syscall") programs', "5.14")

    def tracepoint(self, btf_id: int) -> Support:
        """Load ``return 0`` as a tp_btf program for the typedef with this id in vmlinux BTF."""

        def act() -> None:
            close(
                self.bpf.prog_load(
                    TRACING,
                    Instruction.return_zero(),
                    attach_type=TRACE_RAW_TP,
                    attach_btf_id=btf_id,
                )
            )

        return self._ask(act, NEEDED, None, "5.5")

    @contextmanager
    def _array(self, size: int) -> Iterator[int]:
        with closing(self.bpf.map_create(ARRAY, value=size, flags=MMAPABLE)) as descriptor:
            yield descriptor
