"""The bpf(2) system call by ctypes, so that it can be asked where no extension was built.

Only for probing: nothing here is on a hot path, and nothing made here stays loaded.
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
import struct
from dataclasses import dataclass
from typing import Any

from kerneltrace_core.errors import UnsupportedError

__all__ = ["BpfCall", "CallNumbers", "Instruction", "call_numbers"]

MAP_CREATE = 0
PROG_LOAD = 5
PROG_RUN = 10
BTF_LOAD = 18
LINK_CREATE = 28

LICENSE = b"Dual MIT/GPL\0"
LOG_BYTES = 16384

# union bpf_attr of include/uapi/linux/bpf.h, as far as it is used here. A kernel that knows
# less takes the longer struct while the bytes it does not know are zero.
MAP_ATTR = struct.Struct("=IIIIIII16sIIII")
PROG_ATTR = struct.Struct("=IIQQIIQII16sIIIIQIIQIII")
RUN_ATTR = struct.Struct("=IIIIQQIIIIQQ")
BTF_ATTR = struct.Struct("=QQIII")
LINK_ATTR = struct.Struct("=IIIIQ")
UPROBE_MULTI_ATTR = struct.Struct("=IIIIQQQQIII")
PERF_ATTR = struct.Struct("=IIQQQQQ8xQ48x")

PERF_FLAG_FD_CLOEXEC = 8


@dataclass(frozen=True)
class CallNumbers:
    """System call numbers of one architecture. Immutable."""

    bpf: int
    perf_event_open: int


GENERIC = CallNumbers(280, 241)

CALL_NUMBERS = {
    "x86_64": CallNumbers(321, 298),
    "aarch64": GENERIC,
    "riscv64": GENERIC,
    "loongarch64": GENERIC,
    "ppc64le": CallNumbers(361, 319),
    "s390x": CallNumbers(351, 331),
}


def call_numbers(machine: str) -> CallNumbers | None:
    """Return the numbers for ``platform.machine()``; None when this module does not know it."""
    # A 32-bit interpreter on a 64-bit kernel has other numbers.
    return CALL_NUMBERS.get(machine) if struct.calcsize("P") == 8 else None


class Instruction:
    """Encode the few eBPF instructions that minimal programs need (8 bytes each)."""

    @staticmethod
    def encode(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
        """Encode one struct bpf_insn in this machine's byte order."""
        # Two 4-bit fields of one byte: their order follows the byte order.
        little = struct.pack("=H", 1)[0] == 1
        registers = dst | src << 4 if little else src | dst << 4
        return struct.pack("=BBhi", code, registers, off, imm)

    @classmethod
    def return_zero(cls) -> bytes:
        """``r0 = 0; exit``."""
        return cls.encode(0xB7) + cls.encode(0x95)

    @classmethod
    def read_kernel(cls) -> bytes:
        """``bpf_probe_read_kernel(fp - 8, 8, NULL); r0 = 0; exit``."""
        return b"".join(
            (
                cls.encode(0xBF, dst=1, src=10),  # r1 = fp
                cls.encode(0x07, dst=1, imm=-8),  # r1 += -8
                cls.encode(0xB7, dst=2, imm=8),  # r2 = 8
                cls.encode(0xB7, dst=3, imm=0),  # r3 = 0
                cls.encode(0x85, imm=113),  # call bpf_probe_read_kernel
                cls.return_zero(),
            )
        )


class BpfCall:
    """Ask the kernel through raw system calls.

    Each method makes one call and returns what the kernel returned (a new descriptor is
    the caller's, to close), raises OSError with its errno, or UnsupportedError where the
    call cannot be made at all. Blocking: at most milliseconds. Thread-safe.
    """

    def call(self, command: int, attr: bytes) -> int:
        """Call bpf(command, attr)."""
        import ctypes

        buffer = ctypes.create_string_buffer(attr, len(attr))
        return self._syscall("bpf", command, ctypes.addressof(buffer), len(attr))

    def perf_event(self, kind: int = 1, config: int = 0) -> int:
        """Open a disabled event, by default the CPU clock, on the calling thread; a descriptor."""
        return self._perf_open((kind, config, 1_000_000, 0), pid=0, cpu=-1)

    def perf_probe(self, kind: int, name: bytes) -> int:
        """Open a disabled kprobe on a function, or uprobe at offset 0 of a file; a descriptor."""
        import ctypes

        text = ctypes.create_string_buffer(name)
        return self._perf_open((kind, 0, 0, ctypes.addressof(text)), pid=-1, cpu=0)

    def _perf_open(self, wanted: tuple[int, int, int, int], *, pid: int, cpu: int) -> int:
        import ctypes

        kind, config, period, config1 = wanted
        disabled = 1
        attr = PERF_ATTR.pack(kind, PERF_ATTR.size, config, period, 0, 0, disabled, config1)
        buffer = ctypes.create_string_buffer(attr, len(attr))
        address = ctypes.addressof(buffer)
        return self._syscall("perf_event_open", address, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC)

    def map_create(
        self,
        map_type: int,
        *,
        key: int = 4,
        value: int = 8,
        entries: int = 1,
        flags: int = 0,
        inner: int = 0,
        btf: tuple[int, int, int] = (0, 0, 0),
    ) -> int:
        """Create a map; ``btf`` is (descriptor, type id of the key, of the value)."""
        attr = MAP_ATTR.pack(map_type, key, value, entries, flags, inner, 0, b"kt_probe", 0, *btf)
        return self.call(MAP_CREATE, attr)

    def map_memory(self, descriptor: int, size: int) -> None:
        """Map ``size`` bytes of a map, readable and writable, and unmap them again."""
        mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED).close()

    def btf_load(self, blob: bytes) -> int:
        """Load a BTF blob; a descriptor."""
        import ctypes

        buffer = ctypes.create_string_buffer(blob, len(blob))
        return self.call(BTF_LOAD, BTF_ATTR.pack(ctypes.addressof(buffer), 0, len(blob), 0, 0))

    def prog_load(
        self,
        prog_type: int,
        code: bytes,
        *,
        attach_type: int = 0,
        attach_btf_id: int = 0,
        flags: int = 0,
    ) -> int:
        """Load a program; a descriptor. A refusal carries the verifier's last line, if any."""
        import ctypes

        program = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(LICENSE)

        def load(log: Any) -> int:
            attr = PROG_ATTR.pack(
                prog_type, len(code) // 8, ctypes.addressof(program), ctypes.addressof(licence),
                1 if log else 0, LOG_BYTES if log else 0, ctypes.addressof(log) if log else 0,
                0, flags, b"kt_probe", 0, attach_type, 0, 0, 0, 0, 0, 0, 0, attach_btf_id, 0,
            )  # fmt: skip
            return self.call(PROG_LOAD, attr)

        try:
            return load(None)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOSYS, None):
                raise
        # The verifier writes only when asked, and asking costs: so only the second time.
        log = ctypes.create_string_buffer(LOG_BYTES)
        try:
            return load(log)
        except OSError as error:
            lines = [
                line
                for line in log.value.decode(errors="replace").splitlines()
                if line.strip() and not line.startswith("processed ")
            ]
            raise OSError(error.errno, lines[-1] if lines else error.strerror) from None

    def prog_run(self, descriptor: int) -> int:
        """Run a SEC("syscall") program once in the calling thread; 0."""
        return self.call(PROG_RUN, RUN_ATTR.pack(descriptor, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))

    def uprobe_multi_link(self, program: int, attach_type: int, path: bytes, pid: int = 0) -> int:
        """Attach ``program`` at offset 0 of the file ``path``; a descriptor."""
        import ctypes

        name = ctypes.create_string_buffer(path)
        offset = ctypes.c_uint64(0)
        attr = UPROBE_MULTI_ATTR.pack(
            program, 0, attach_type, 0, ctypes.addressof(name), ctypes.addressof(offset),
            0, 0, 1, 0, pid & 0xFFFFFFFF,
        )  # fmt: skip
        return self.call(LINK_CREATE, attr)

    def link_create(self, program: int, target: int, attach_type: int) -> int:
        """Attach ``program`` to a descriptor or interface; a descriptor."""
        return self.call(LINK_CREATE, LINK_ATTR.pack(program, target, attach_type, 0, 0))

    def _syscall(self, name: str, *arguments: int) -> int:
        try:
            import ctypes
        except ImportError as error:  # an interpreter built without libffi
            raise UnsupportedError(f"call {name}: this Python has no ctypes ({error})") from error
        numbers = call_numbers(platform.machine())
        if numbers is None:
            raise UnsupportedError(
                f"call {name}: system call number unknown on {platform.machine()}"
            )
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        number = getattr(numbers, name)
        result = libc.syscall(*(ctypes.c_long(value) for value in (number, *arguments)))
        if result < 0:
            error_number = ctypes.get_errno()
            raise OSError(error_number, os.strerror(error_number))
        return int(result)
