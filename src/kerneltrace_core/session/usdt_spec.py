"""Say to bpf_usdt_arg() where arguments are: the spec that usdt.bpf.h reads by cookie."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from kerneltrace_core.errors import FormatError, UnsupportedError
from kerneltrace_core.session.usdt_notes import UsdtArgument, parse_argument, split_arguments

__all__ = ["SPEC_SIZES", "encode_spec", "register_offset"]

# struct __bpf_usdt_spec of libbpf's usdt.bpf.h: MAX_ARGUMENTS arguments and this.
MAX_ARGUMENTS = 12
TAIL = struct.Struct("=Qh6x")
# struct __bpf_usdt_arg_spec: val_off, arg_type, reg_off, arg_signed, arg_bitshift. With 1.7 came
# the index register, as bit fields; clang gives each a unit of its type, so that what the header
# calls compatible is 24 bytes for 16. Its idx_reg_off and scale_bitshift are one number here.
ARGUMENT = struct.Struct("=QIhBb")
INDEXED_ARGUMENT = struct.Struct("=QBxHxxhBb6x")
SPEC_BYTES, INDEXED_SPEC_BYTES = SPEC_SIZES = tuple(
    MAX_ARGUMENTS * argument.size + TAIL.size for argument in (ARGUMENT, INDEXED_ARGUMENT)
)

CONSTANT, REGISTER, MEMORY, INDEXED = range(4)
SCALE_AT_BIT = 12

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


# What an address can be made of: bpf_usdt_arg() adds whole registers, 32 bits wrap around.
X86_64_INDEXES = {names[0] for names in X86_64[:15]}
X86_64_BASES = X86_64_INDEXES | {"rsp"}

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


def encode_spec(arguments: str, machine: str, size: int = SPEC_BYTES) -> bytes:
    """Encode the arguments of a note for this machine's bpf_usdt_arg(). Pure.

    ``size``: the spec's in bytes, which tells the version of usdt.bpf.h: one of SPEC_SIZES.
    Raises FormatError for an argument that it cannot read, UnsupportedError for a machine, a
    version, and for an index in a version that knows none.
    """
    if size not in SPEC_SIZES:
        raise UnsupportedError(
            f"read USDT arguments: a spec of {size} bytes is not known here, of "
            f"{SPEC_BYTES} and {INDEXED_SPEC_BYTES} is (usdt.bpf.h of libbpf 0.8 to 1.7)"
        )
    parsed = [parse_argument(text) for text in split_arguments(arguments)]
    if len(parsed) > MAX_ARGUMENTS:
        raise FormatError(f"read USDT arguments: {len(parsed)}, bpf_usdt_arg() reads 12 at most")
    encode = _encode_indexed if size == INDEXED_SPEC_BYTES else _encode
    encoded = b"".join(encode(argument, machine) for argument in parsed)
    cookie = 0
    return encoded.ljust(size - TAIL.size, b"\0") + TAIL.pack(cookie, len(parsed))


def _encode(argument: UsdtArgument, machine: str) -> bytes:
    if argument.index is not None:
        raise UnsupportedError(
            "read USDT arguments: memory at a register and an index, which bpf_usdt_arg() adds "
            "from libbpf 1.7 on (compile the object with its usdt.bpf.h)"
        )
    return ARGUMENT.pack(
        _value(argument), _kind(argument), _offset(argument, machine), *_width(argument)
    )


def _encode_indexed(argument: UsdtArgument, machine: str) -> bytes:
    index = 0
    if argument.index is not None:
        if machine == "x86_64" and not (
            argument.register in X86_64_BASES and argument.index in X86_64_INDEXES
        ):
            raise FormatError(
                f"read USDT arguments: %{argument.register} and %{argument.index} are not the "
                "registers of an address of 64 bits, which bpf_usdt_arg() adds"
            )
        shift = argument.scale.bit_length() - 1
        index = register_offset(argument.index, machine) | shift << SCALE_AT_BIT
    offset = _offset(argument, machine)
    return INDEXED_ARGUMENT.pack(
        _value(argument), _kind(argument), index, offset, *_width(argument)
    )


def _value(argument: UsdtArgument) -> int:
    return argument.value & 0xFFFFFFFFFFFFFFFF


def _kind(argument: UsdtArgument) -> int:
    if argument.register is None:
        return CONSTANT
    if not argument.in_memory:
        return REGISTER
    return MEMORY if argument.index is None else INDEXED


def _offset(argument: UsdtArgument, machine: str) -> int:
    return 0 if argument.register is None else register_offset(argument.register, machine)


def _width(argument: UsdtArgument) -> tuple[bool, int]:
    return argument.signed, 64 - 8 * argument.size
