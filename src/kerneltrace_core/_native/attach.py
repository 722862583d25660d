"""Attaching as Python functions: one system call each, every return code checked on its line.

Each that attaches returns what owns the attachment. Thread-safe, the GIL is released.
Raises AttachError, or PrivilegeError for EPERM and EACCES, with ``act`` and the errno: what
that means for a certain probe is said by the callers.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from kerneltrace_core._native.held import Descriptor, LibbpfLink
from kerneltrace_core._native.lib import (
    Program,
    _log_begin,
    _log_end,
    _log_lines,
    _reason,
    c_text,
    ffi,
    lib,
)
from kerneltrace_core.errors import AttachError, KernelTraceError, PrivilegeError

__all__ = [
    "attach_by_section",
    "create_link",
    "create_uprobe_link",
    "detach",
    "enable_perf_event",
    "new_filter",
    "open_perf_event",
    "open_tracepoint",
    "program_facts",
    "set_attach_target",
    "set_attach_type",
    "set_perf_program",
    "tc_attach",
    "tc_detach",
    "tc_hook_create",
    "tc_hook_destroy",
    "update_map",
]

HeldFilter = Any  # a C struct, opaque here

NO_KERNEL_BTF = "failed to find valid kernel BTF"  # libbpf, bpf_object__load_vmlinux_btf()
THREADS = 1
PROCESSES = 2


@contextmanager
def _logged() -> Iterator[None]:
    """Pass on what libbpf writes in the block; of a failure as DEBUG, its exception tells it."""
    _log_begin()
    try:
        yield
    except KernelTraceError:
        _log_end(failed=True)
        raise
    _log_end(failed=False)


def _refused(act: str, code: int) -> NoReturn:
    kind = PrivilegeError if code in (errno.EPERM, errno.EACCES) else AttachError
    raise kind(f"{act}: {_reason(code)}", errno=code)


def _checked(act: str, code: int) -> int:
    if code < 0:
        _refused(act, -code)
    return code


def _held(act: str, call: Callable[..., int], *arguments: object) -> Descriptor:
    held = Descriptor()
    _checked(act, held.fill(call, *arguments))
    return held


# ---- programs before load ---------------------------------------------------


def program_facts(program: Program) -> tuple[str, int, int, bool]:
    """Return section, type and expected attach type (kernel numbers), and whether it loads."""
    return (
        c_text(lib.bpf_program__section_name(program)),
        int(lib.bpf_program__type(program)),
        int(lib.bpf_program__expected_attach_type(program)),
        bool(lib.bpf_program__autoload(program)),
    )


def set_attach_type(program: Program, attach_type: int) -> None:
    """Set the expected attach type before load."""
    _checked("set attach type", lib.bpf_program__set_expected_attach_type(program, attach_type))


def set_attach_target(program: Program, name: str) -> None:
    """Say before load which kernel function or tracepoint a tracing program is for.

    Reads the kernel's BTF the first time (tens of milliseconds). ESRCH: there is none of that
    name; ENOENT: there is no BTF.
    """
    with _logged():
        code = lib.bpf_program__set_attach_target(program, 0, name.encode())
        if code == -errno.ESRCH and any(NO_KERNEL_BTF in line for line in _log_lines()):
            code = -errno.ENOENT  # libbpf has one number for both
        _checked(f"find {name} in the kernel's BTF", code)


# ---- tracepoints and links --------------------------------------------------


def open_tracepoint(program_fd: int, name: str | None) -> Descriptor:
    """Attach to a raw tracepoint, or (None) to what the program was loaded for."""
    text = ffi.NULL if name is None else ffi.new("char[]", name.encode())
    return _held("open raw tracepoint", lib.kt_tracepoint_open, program_fd, text)


def create_link(
    program_fd: int, target: int, attach_type: int, *, flags: int = 0, cookie: int = 0
) -> Descriptor:
    """Attach to a descriptor or network interface."""
    return _held("create link", lib.kt_link_create, program_fd, target, attach_type, flags, cookie)


def create_uprobe_link(
    program_fd: int,
    path: bytes,
    offsets: Sequence[int],
    *,
    counters: Sequence[int] | None = None,
    cookies: Sequence[int] | None = None,
    pid: int = 0,
    is_return: bool = False,
) -> Descriptor:
    """Attach to offsets of a file by one uprobe_multi link (6.6); pid 0 is every process."""

    def array(values: Sequence[int] | None) -> object:
        return ffi.NULL if values is None else ffi.new("uint64_t[]", list(values))

    return _held(
        "create uprobe_multi link", lib.kt_link_uprobes,
        program_fd, ffi.new("char[]", path), array(offsets), array(counters), array(cookies),
        len(offsets), pid, is_return,
    )  # fmt: skip


# ---- perf events ------------------------------------------------------------


def open_perf_event(
    kind: int,
    config: int,
    *,
    name: bytes | None = None,
    config1: int = 0,
    config2: int = 0,
    period: int = 0,
    by_frequency: bool = False,
    inherit: int = 0,
    pid: int = -1,
    cpu: int = -1,
) -> Descriptor:
    """Open a disabled perf event; ``inherit`` is 0, THREADS (5.13) or PROCESSES."""
    text = ffi.NULL if name is None else ffi.new("char[]", name)
    wanted = ffi.new(
        "struct kt_perf *",
        (kind, config, text, config1, config2, period, by_frequency, inherit, pid, cpu),
    )
    return _held("open perf event", lib.kt_perf_open, wanted)


def enable_perf_event(fd: int) -> None:
    """Let a perf event begin."""
    _checked("enable perf event", lib.kt_perf_enable(fd))


def set_perf_program(fd: int, program_fd: int) -> None:
    """Attach to a perf event on kernels without perf links (before 5.15)."""
    _checked("set program of perf event", lib.kt_perf_set_program(fd, program_fd))


# ---- traffic control --------------------------------------------------------


def new_filter() -> HeldFilter:
    """Return the struct in which the calls below say what they made; see struct kt_held_filter."""
    return ffi.new("struct kt_held_filter *")


def tc_hook_create(interface: int, held: HeldFilter) -> None:
    """Give an interface a clsact qdisc, if it has none."""
    with _logged():
        _checked("create clsact qdisc", lib.kt_tc_hook_create(interface, held))


def tc_hook_destroy(interface: int) -> None:
    """Remove the clsact qdisc with every filter in it."""
    with _logged():
        _checked("remove clsact qdisc", lib.kt_tc_hook_destroy(interface))


def tc_attach(interface: int, held: HeldFilter, *, egress: bool, program_fd: int) -> None:
    """Add a filter."""
    with _logged():
        _checked("add tc filter", lib.kt_tc_attach(interface, egress, program_fd, held))


def tc_detach(interface: int, held: HeldFilter, *, egress: bool) -> None:
    """Remove a filter."""
    with _logged():
        _checked("remove tc filter", lib.kt_tc_detach(interface, egress, held))


# ---- what is left to libbpf -------------------------------------------------


def attach_by_section(program: Program, act: str = "attach by section") -> LibbpfLink:
    """Attach as libbpf reads the section."""
    held = LibbpfLink()
    with _logged():
        code = held.fill(program)
        if code in (-errno.EPERM, -errno.EACCES):
            raise PrivilegeError(f"{act}: {_reason(-code)}", errno=-code, log=_log_lines())
        _checked(act, code)
    return held


def detach(link: LibbpfLink) -> None:
    """Detach what was attached by its section."""
    _checked("detach", link.end())


def update_map(fd: int, key: bytes, value: bytes) -> None:
    """Store a value; sizes are the caller's duty."""
    _checked("update map", lib.bpf_map_update_elem(fd, key, value, 0))
