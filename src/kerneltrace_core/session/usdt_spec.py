"""Say to bpf_usdt_arg() where arguments are: the spec that usdt.bpf.h reads by cookie."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from kerneltrace_core.errors import FormatError, UnsupportedError
from kerneltrace_core.session.usdt_notes import UsdtArgument, parse_argument, split_arguments

__all__ = ["SPEC_BYTES", "encode_spec", "register_offset"]

# struct __bpf_usdt_spec of libbpf's usdt.bpf.h, the same since it came (0.8). What newer ones put
# into the type's upper bytes is zero for all forms that are known here.
MAX_ARGUMENTS = 12
ARGUMENT = struct.Struct("=QIhBb")
TAIL = struct.Struct("=Qh6x")
SPEC_BYTES = MAX_ARGUMENTS * ARGUMENT.size + TAIL.size

CONSTANT, REGISTER, MEMORY = 0, 1, 2

# Names of x86-64 registers in the order of struct pt_regs, by width: arch/x86/include/asm/ptrace.h.
X86_64 = (
    ("r15", "r15d", "r15w", "r15b"), ("r14", "r14d", "r14w", "r14b"),
    ("r13", "r13d", "r13w", "r13b"), ("r12", "r12d", "r12w", "r12b"),
    ("rbp", "ebp", "bp", "bpl"), ("rbx", "ebx", "bx", "bl"),
    ("r11", "r11d", "r11w", "r11b"), ("r10", "r10d", "r10w", "r10b"),
    ("r9", "r9d", "r9w", "r9b"), ("r8", "r8d", "r8w", "r8b"),
    ("rax", "eax", "ax", "al"), ("rcx", "ecx", "cx", "cl"),
    ("rdx", "edx", "dx", "dl"), ("rsi", "esi", "si", "sil"),
    ("rdi", "edi", "di", "dil"), ("orig_rax",), ("rip", "eip"), ("cs",), ("flags",),
    ("rsp", "esp", "sp", "spl"),
)  # fmt: skip
X86_64_OFFSETS = {name: 8 * place for place, names in enumerate(X86_64) for name in names}
ARM64_REGISTER = re.compile(r"[xw](\d\d?)$")
ARM64_STACK_POINTER = 8 * 31


def _arm64(name: str) -> int | None:
    if name == "sp":
        return ARM64_STACK_POINTER
    found = ARM64_REGISTER.match(name)
    return 8 * int(found[1]) if found and int(found[1]) < 31 else None


OFFSETS: dict[str, Callable[[str], int | None]] = {
    "x86_64": X86_64_OFFSETS.get,
    "aarch64": _arm64,
}


def register_offset(name: str, machine: str) -> int:
    """Return where a register is in struct pt_regs, in bytes. Raises FormatError. Pure."""
    find = OFFSETS.get(machine)
    if find is None:
        raise UnsupportedError(f"read USDT arguments: registers of {machine} are not known here")
    offset = find(name)
    if offset is None:
        raise FormatError(f"read USDT arguments: {machine} has no register {name} in its pt_regs")
    return offset


def encode_spec(arguments: str, machine: str) -> bytes:
    """Encode the arguments of a note for this machine's bpf_usdt_arg(). Pure.

    Raises FormatError for an argument that it cannot read, UnsupportedError for a machine.
    """
    parsed = [parse_argument(text) for text in split_arguments(arguments)]
    if len(parsed) > MAX_ARGUMENTS:
        raise FormatError(f"read USDT arguments: {len(parsed)}, bpf_usdt_arg() reads 12 at most")
    encoded = b"".join(_encode(argument, machine) for argument in parsed)
    cookie = 0
    padding = bytes((MAX_ARGUMENTS - len(parsed)) * ARGUMENT.size)
    return encoded + padding + TAIL.pack(cookie, len(parsed))


def _encode(argument: UsdtArgument, machine: str) -> bytes:
    kind, offset = CONSTANT, 0
    if argument.register is not None:
        kind = MEMORY if argument.in_memory else REGISTER
        offset = register_offset(argument.register, machine)
    value = argument.value & 0xFFFFFFFFFFFFFFFF
    return ARGUMENT.pack(value, kind, offset, argument.signed, 64 - 8 * argument.size)
