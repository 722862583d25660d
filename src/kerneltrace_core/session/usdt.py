"""Attach to static tracepoints of binaries, with their arguments where the program reads them."""

from __future__ import annotations

import errno
import os
import platform
import struct
import threading
import weakref

from kerneltrace_core._native import attach as native
from kerneltrace_core._native import maps
from kerneltrace_core.bpf.object import BpfObject
from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.errors import AttachError, FormatError, LoadError, UnsupportedError
from kerneltrace_core.kernel.symbols import nearest
from kerneltrace_core.session.attached import Attached
from kerneltrace_core.session.binaries import own_files, read_binary
from kerneltrace_core.session.process_probes import SELF, TRACE_UPROBE_MULTI, Usdt
from kerneltrace_core.session.refusals import Cause, did_you_mean, refuse
from kerneltrace_core.session.uprobes import Place, attach_places, locate
from kerneltrace_core.session.usdt_notes import StaticTracepoint, parse_notes
from kerneltrace_core.session.usdt_spec import encode_spec

__all__ = ["attach_usdt"]

SPECS = "__bpf_usdt_specs"


class SpecTable:
    """The specs of one object that its programs look up by cookie; alike ones are shared."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.spec_bytes = maps.info(fd).value_size
        self._numbers: dict[bytes, int] = {}
        self._lock = threading.Lock()

    def number(self, spec: bytes) -> int:
        """Return the number of a spec, storing it if it is new. Raises AttachError when full."""
        with self._lock:
            if spec not in self._numbers:
                number = len(self._numbers)
                native.update_map(self._fd, struct.pack("=i", number), spec)
                self._numbers[spec] = number
            return self._numbers[spec]


TABLES: weakref.WeakKeyDictionary[BpfObject, SpecTable] = weakref.WeakKeyDictionary()
TABLES_LOCK = threading.Lock()


def _table(opened: BpfObject) -> SpecTable | None:
    """Return the table of an object's argument specs; None if it does not use usdt.bpf.h."""
    with TABLES_LOCK:
        table = TABLES.get(opened)
        if table is None:
            try:
                fd = opened.map_fd(SPECS)
            except LoadError:
                return None
            table = TABLES[opened] = SpecTable(fd)
        return table


def attach_usdt(opened: BpfObject, program: ProgramFacts, spec: Usdt) -> Attached:
    """Attach to every place of a static tracepoint."""
    pid = os.getpid() if spec.pid == 0 else spec.pid
    candidates = own_files() if spec.binary == SELF else [locate(program, spec, pid)]
    path, found = _find(program, spec, candidates)
    table = _table(opened) if program.prefix.startswith("usdt") else None
    places = [_place(program, spec, each, table) for each in found]
    program_fd = opened.program_fd(program.name)
    try:
        return attach_places(program_fd, program, spec, path, places, pid)
    except AttachError as error:
        multi = program.attach_type == TRACE_UPROBE_MULTI
        if error.errno == errno.EINVAL and not multi and table is not None:
            cause = Cause(
                "this kernel has no attach cookies, by which a program knows its arguments",
                'Linux 5.15 or later, or a SEC("uprobe") program that reads no arguments',
                UnsupportedError,
            )
            raise refuse(spec, program, error.errno, cause) from error
        raise


def _find(
    program: ProgramFacts, spec: Usdt, candidates: list[str]
) -> tuple[str, list[StaticTracepoint]]:
    known: list[str] = []
    for path in candidates:
        try:
            tracepoints = parse_notes(read_binary(path), path)
        except (OSError, FormatError) as error:
            if len(candidates) > 1:
                continue
            code = error.errno if isinstance(error, OSError) else errno.ENOEXEC
            raise refuse(spec, program, code, Cause(str(error))) from error
        wanted = (spec.provider, spec.name)
        found = [each for each in tracepoints if (each.provider, each.name) == wanted]
        if found:
            return path, found
        known += sorted({f"{each.provider}:{each.name}" for each in tracepoints})
    where = " nor ".join(candidates)
    if not known:
        remedy = (
            "this Python was built without --with-dtrace; Debian's and Fedora's have it"
            if spec.binary == SELF or "python" in where
            else "it was built without them"
        )
        cause = Cause(f"{where} has no static tracepoints", remedy)
    else:
        near = nearest(f"{spec.provider}:{spec.name}", known)
        hint = did_you_mean(near) or f"it has {', '.join(known)}"
        cause = Cause(f"{where} has no such static tracepoint", hint)
    raise refuse(spec, program, errno.ENOENT, cause)


def _place(
    program: ProgramFacts, spec: Usdt, tracepoint: StaticTracepoint, table: SpecTable | None
) -> Place:
    if table is None:
        return Place(tracepoint.offset, tracepoint.semaphore)
    try:
        encoded = encode_spec(tracepoint.arguments, platform.machine(), table.spec_bytes)
    except (FormatError, UnsupportedError) as error:
        kind = UnsupportedError if isinstance(error, UnsupportedError) else AttachError
        cause = Cause(
            f"its arguments are {tracepoint.arguments}: {error}",
            'a SEC("uprobe") program attaches without them',
            kind,
        )
        raise refuse(spec, program, None, cause) from error
    try:
        number = table.number(encoded)
    except AttachError as error:
        cause = Cause(
            "there is no room for more kinds of arguments",
            "define BPF_USDT_MAX_SPEC_CNT higher before usdt.bpf.h",
        )
        raise refuse(spec, program, error.errno, cause) from error
    return Place(tracepoint.offset, tracepoint.semaphore, number)
