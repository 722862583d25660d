"""libbpf as Python functions: one C call each, every return code checked on its line.

Not thread-safe for one object; different objects may be used from different threads.
Nothing here decides: which program to load, what a refusal means to a user and what to do
next is said by the callers, who get the errno and the lines that libbpf wrote.
"""

from __future__ import annotations

import errno as errno_names
import logging
import os
import re
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

from kerneltrace_core.errors import LoadError, NativeMissingError, PrivilegeError

try:
    # By another module of this package too, which is not to import the extension itself.
    from kerneltrace_core._native._libbpf import ffi as ffi
    from kerneltrace_core._native._libbpf import lib as lib
except ImportError as cause:
    raise NativeMissingError(
        f"import kerneltrace_core._native._libbpf: {cause} "
        "(the compiled part is missing: install a wheel for this platform, "
        "or build on Linux with libbpf's headers)"
    ) from cause

# Opaque C pointers. They are as good as their owner: kerneltrace_core.bpf keeps that.
Object = Any
Program = Any
Map = Any
Btf = Any

ABI: int = lib.KT_ABI
THREADS: int = lib.KT_THREADS
SLOTS: int = lib.KT_SLOTS
CALLS: int = lib.KT_CALLS
THREAD_BYTES: int = lib.kt_thread_bytes
SLOT_BYTES: int = lib.kt_slot_bytes
SLOT_BANK_OFFSET: int = lib.kt_slot_bank
SLOT_CALL_OFFSET: int = lib.kt_slot_call

T = TypeVar("T")

# libbpf guesses; on kernels since 5.11 memory is accounted to the cgroup and this is wrong.
WRONG_HINTS = ("permission error while running as root; try raising 'ulimit -l'",)


libbpf_logger = logging.getLogger("kerneltrace.libbpf")
LIBBPF_LEVELS = {"0": logging.WARNING, "1": logging.INFO, "2": logging.DEBUG}
LOG_MARK = re.compile("\x02([012])")  # and no other \x02: an object may have it in a name


def _log_begin() -> None:
    lib.kt_log_begin(libbpf_logger.isEnabledFor(logging.DEBUG))


def _log_messages() -> list[tuple[int, str]]:
    text: str = ffi.string(lib.kt_log_end()).decode("utf-8", "replace")
    # What stands before the first mark is the rest of a message whose beginning was dropped.
    rest, *messages = LOG_MARK.split(text)
    levels = (LIBBPF_LEVELS[each] for each in messages[::2])
    parted = list(zip(levels, messages[1::2], strict=True))
    return [(logging.INFO, rest), *parted] if rest else parted


def _log_lines() -> tuple[str, ...]:
    """Return libbpf's lines without its debugging, which an error is not the place for."""
    return tuple(
        line
        for level, message in _log_messages()
        if level > logging.DEBUG
        for line in message.splitlines()
        if not any(hint in line for hint in WRONG_HINTS)
    )


def _log_end(*, failed: bool) -> None:
    """Pass libbpf's lines on to logging; those of a failure as DEBUG, its exception has them."""
    for level, message in _log_messages():
        for line in message.splitlines():
            libbpf_logger.log(logging.DEBUG if failed else level, "%s", line.rstrip())


# libbpf's own, beyond errno (its libbpf.h, enum libbpf_errno).
LIBBPF_ERRORS = {
    4000: "libelf failed",
    4001: "not a BPF ELF object",
    4003: "made for another byte order",
    4004: "libbpf failed",
    4005: "a relocation is wrong",
    4006: "the kernel refused a program",
    4007: "the verifier refused a program",
    4008: "a program is too long",
    4009: "made for another kernel",
    4010: "this kernel has no such type of program",
}


def c_text(pointer: Any) -> str:
    """Return a C string; an object's names are whatever bytes it has."""
    text: str = ffi.string(pointer).decode("utf-8", "backslashreplace")
    return text


def _reason(code: int) -> str:
    if code in LIBBPF_ERRORS:
        return LIBBPF_ERRORS[code]
    return f"{os.strerror(code)} ({errno_names.errorcode.get(code, code)})"


def _refused(act: str, code: int) -> NoReturn:
    _log_end(failed=True)
    if code in (errno_names.EPERM, errno_names.EACCES) and not _verifier_spoke(_log_lines()):
        raise PrivilegeError(f"{act}: {_reason(code)}", errno=code, log=_log_lines())
    log = _log_lines()
    if code == errno_names.EINVAL and _descriptors_exhausted(log):
        code = errno_names.EMFILE
    raise LoadError(f"{act}: {_reason(code)}", errno=code, log=log)


def _verifier_spoke(log: tuple[str, ...]) -> bool:
    """Tell a program that the verifier rejected (also EACCES) from a missing privilege."""
    return any(line.startswith("processed ") and " insns" in line for line in log)


def _descriptors_exhausted(log: tuple[str, ...]) -> bool:
    """Tell a map that could not be made for want of a descriptor; libbpf reports its second try."""
    told = os.strerror(errno_names.EMFILE), "-EMFILE"
    return any("create_map" in line and any(word in line for word in told) for line in log)


def _checked(act: str, code: int) -> int:
    """Return a non-negative result; raise for a negative errno."""
    if code < 0:
        _refused(act, -code)
    return code


# ---- objects ----------------------------------------------------------------


def open_object(data: bytes, name: str, btf_path: str | None = None) -> Object:
    """Parse an ELF object. Raises LoadError. The caller closes it, or forgets it."""
    _log_begin()
    path = ffi.NULL if btf_path is None else os.fsencode(btf_path)
    shown = name.encode("utf-8", "backslashreplace")  # of a path, which may be any bytes
    held = ffi.gc(ffi.new("struct bpf_object **"), lib.kt_object_free)  # as held.py has it
    _checked(f"open BPF object {name}", lib.kt_object_open(data, len(data), shown, path, held))
    _log_end(failed=False)
    return held


def load_object(opened: Object, name: str) -> None:
    """Create the maps and load the programs. Blocks for tens of milliseconds.

    Raises LoadError with the verifier's log, PrivilegeError.
    """
    _log_begin()
    _checked(f"load BPF object {name}", lib.kt_object_load(opened[0]))
    _log_end(failed=False)


def close_object(opened: Object) -> None:
    """Free the object, its maps and programs; may be repeated. Links must have ended before."""
    lib.kt_object_free(opened)


def close_unloaded(opened: Object) -> None:
    """Free an object that was not loaded after attach targets were looked up for it."""
    _log_begin()
    lib.kt_object_close_unloaded(opened)
    _log_end(failed=True)  # for it is no news


# ---- programs ---------------------------------------------------------------


def programs(opened: Object) -> Iterator[tuple[str, Program]]:
    """Yield each program of an object with its name."""
    program = lib.bpf_object__next_program(opened[0], ffi.NULL)
    while program != ffi.NULL:
        yield c_text(lib.bpf_program__name(program)), program
        program = lib.bpf_object__next_program(opened[0], program)


def set_autoload(program: Program, wanted: bool) -> None:
    """Say before load whether a program is loaded."""
    _checked("set autoload", lib.bpf_program__set_autoload(program, wanted))


def program_fd(program: Program) -> int:
    """Return the descriptor of a loaded program."""
    return _checked("get program descriptor", lib.bpf_program__fd(program))


def run_program(fd: int, context: bytearray, act: str) -> None:
    """Run a SEC("syscall") program on this thread; context is read and written back."""
    _checked(act, lib.kt_program_run(fd, ffi.from_buffer(context), len(context)))


# ---- maps -------------------------------------------------------------------


def find_map(opened: Object, name: str) -> Map:
    """Return a map of an object. Raises LoadError if it has none of that name."""
    found = lib.bpf_object__find_map_by_name(opened[0], name.encode())
    if found == ffi.NULL:
        raise LoadError(f"find map {name}: the object has no such map", errno=ffi.errno)
    return found


def map_fd(found: Map) -> int:
    """Return the descriptor of a created map."""
    return _checked("get map descriptor", lib.bpf_map__fd(found))


def set_max_entries(found: Map, entries: int) -> None:
    """Size a map before load."""
    _checked("set map size", lib.bpf_map__set_max_entries(found, entries))


def set_autocreate(found: Map, wanted: bool) -> None:
    """Say before load whether a map is created."""
    _checked("set map autocreate", lib.bpf_map__set_autocreate(found, wanted))


def initial_value(found: Map) -> memoryview:
    """Return the memory of a global data section before load; it lives as long as the object."""
    size = ffi.new("size_t *")
    address = lib.bpf_map__initial_value(found, size)
    if address == ffi.NULL:
        raise LoadError("read initial value: the map is no data section", errno=ffi.errno)
    return memoryview(ffi.buffer(address, size[0]))


def variable(opened: Object, section: str, name: str) -> tuple[int, int]:
    """Return offset and size of a global variable in its section. Raises LoadError."""
    place = ffi.new("unsigned int[2]")
    code = lib.kt_variable(opened[0], section.encode(), name.encode(), place, place + 1)
    if code < 0:
        raise LoadError(f"find variable {name}: not in {section} of the object", errno=-code)
    return int(place[0]), int(place[1])


def reuse_map_fd(found: Map, fd: int) -> None:
    """Say before load that a map exists already; libbpf keeps a duplicate of the descriptor."""
    _checked("use existing map", lib.bpf_map__reuse_fd(found, fd))


def create_region_map(size: int) -> int:
    """Create a one-element array that can be mapped; returns its descriptor."""
    return _checked("create region", lib.kt_map_create_array(b"kt_region", size))


def create_outer_map(entries: int, inner_fd: int) -> int:
    """Create an array of maps of the inner one's shape; returns its descriptor."""
    fd = lib.kt_map_create_array_of_maps(b"kt_regions", entries, inner_fd)
    return _checked("create map of regions", fd)


def update_map_u32(fd: int, key: int, value: int) -> None:
    """Store a u32 under a u32, as an ARRAY_OF_MAPS takes a descriptor. Waits for RCU (20 ms)."""
    key_value = ffi.new("uint32_t[2]", [key, value])
    code = lib.bpf_map_update_elem(fd, key_value, key_value + 1, 0)
    _checked("update map", code)


def possible_cpus() -> int:
    """Return how many CPUs this kernel may ever have."""
    return _checked("count possible CPUs", lib.libbpf_num_possible_cpus())


def trim_memory() -> None:
    """Give the heap that loading has left free back to the system (glibc)."""
    lib.kt_trim()


# ---- BTF --------------------------------------------------------------------


def _refuse_unreadable_btf() -> None:
    """Say why the kernel's BTF cannot be opened, if it is there; libbpf then says: not found."""
    try:
        os.close(os.open("/sys/kernel/btf/vmlinux", os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        pass
    except OSError as error:
        _refused("read BTF /sys/kernel/btf/vmlinux", error.errno or 0)


def load_btf(path: str | None = None) -> Btf:
    """Parse the running kernel's BTF, or a file. The caller frees it.

    Raises LoadError, PrivilegeError.
    """
    _log_begin()
    btf = (
        lib.btf__load_vmlinux_btf() if path is None else lib.btf__parse(os.fsencode(path), ffi.NULL)
    )
    if btf == ffi.NULL:
        code = ffi.errno
        if path is None and code in (errno_names.ESRCH, errno_names.ENOENT):
            _refuse_unreadable_btf()
            # libbpf looks in several places; none of them has it.
            raise LoadError(
                "read the kernel's BTF: not in /sys/kernel/btf/vmlinux nor beside the kernel "
                "(use a kernel with CONFIG_DEBUG_INFO_BTF=y; in a container, make /sys visible)",
                errno=errno_names.ENOENT,
                log=_log_lines(),
            )
        _refused(f"read BTF {path or '/sys/kernel/btf/vmlinux'}", code)
    return btf


def free_btf(btf: Btf) -> None:
    """Free parsed BTF."""
    lib.btf__free(btf)


def tracepoint_arguments(btf: Btf, name: str) -> int | None:
    """Return how many arguments a BTF tracepoint has, None if the kernel has no such."""
    count: int = lib.kt_tracepoint_arguments(btf, name.encode())
    return None if count < 0 else count


# ---- regions ----------------------------------------------------------------


def map_region(fd: int, size: int) -> tuple[int, memoryview]:
    """Map a region; a forked child has private memory at the same addresses."""
    address = lib.kt_region_map(fd, size)
    if address == ffi.NULL:
        _refused("map region", ffi.errno)
    return int(ffi.cast("uintptr_t", address)), memoryview(ffi.buffer(address, size)).cast("B")


def anonymous_region(size: int) -> tuple[int, memoryview]:
    """Return zeroed memory of a region's size that no kernel program knows."""
    address = lib.kt_region_anonymous(size)
    if address == ffi.NULL:
        _refused("allocate region", ffi.errno)
    return int(ffi.cast("uintptr_t", address)), memoryview(ffi.buffer(address, size)).cast("B")


def forget_region(address: int, size: int) -> None:
    """Replace a mapped region by private memory at the same addresses, for good.

    It is never unmapped: a thread may still hold the address of its cell.
    """
    _checked("forget region", lib.kt_region_forget(ffi.cast("void *", address), size))
