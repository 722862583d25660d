"""Attach to places in binaries: by uprobe_multi links where the kernel has them, else by perf."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from typing import NamedTuple

from kerneltrace_core._native import attach as native
from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.errors import FormatError, UnsupportedError
from kerneltrace_core.kernel.capabilities import NEEDED
from kerneltrace_core.kernel.features import FeatureProbes
from kerneltrace_core.kernel.privileges import read_privileges
from kerneltrace_core.session.attached import Attached, Descriptors
from kerneltrace_core.session.binaries import (
    FunctionNotFoundError,
    find_binary,
    function_offset,
    read_binary,
)
from kerneltrace_core.session.functions import pmu_number
from kerneltrace_core.session.process_probes import TRACE_UPROBE_MULTI, Uprobe, Uretprobe, Usdt
from kerneltrace_core.session.refusals import (
    ENOTSUPP,
    Cause,
    explained,
    missing_option,
    plain_cause,
    privilege,
    refuse,
)
from kerneltrace_core.session.tracepoints import run_on_perf_event

__all__ = ["Place", "attach_places", "attach_uprobe", "locate", "uprobe_way"]

logger = logging.getLogger("kerneltrace")

BY_PERF = "Linux 6.6 or later, where CAP_BPF and CAP_PERFMON are enough (uprobe_multi links)"


class UprobeWay(NamedTuple):
    """How uprobes are attached here: by ``multi`` links, and whether these filter by process."""

    multi: bool
    by_process: bool


class Place(NamedTuple):
    """An instruction of a file: its offset, that of the counter that switches it on (0: none).

    ``cookie`` is what bpf_get_attach_cookie() returns there, None if nobody asks.
    """

    offset: int
    counter: int = 0
    cookie: int | None = None


@cache
def uprobe_way() -> UprobeWay:
    """Ask the kernel, once for this process, how uprobes are to be attached; logs the answer."""
    probes = FeatureProbes(read_privileges())
    multi = probes.uprobe_multi()
    if not multi.works:
        logger.info("uprobes: attached through perf events (%s)", multi.reason)
        return UprobeWay(multi=False, by_process=True)
    if probes.uprobe_multi_by_process().works:
        logger.info("uprobes: attached by uprobe_multi links")
        return UprobeWay(multi=True, by_process=True)
    # Perf filters rightly, and asks for more.
    if probes.uprobes().works:
        logger.info("uprobes: attached through perf events (uprobe_multi filters by thread here)")
        return UprobeWay(multi=False, by_process=True)
    logger.info("uprobes: attached by uprobe_multi links, for all processes alone")
    return UprobeWay(multi=True, by_process=False)


def locate(program: ProgramFacts, spec: Uprobe | Uretprobe | Usdt, pid: int | None) -> str:
    """Return the path of a spec's binary. Raises AttachError."""
    path = find_binary(spec.path, pid)
    if path is None:
        if pid is not None and not os.path.exists(f"/proc/{pid}"):  # noqa: PTH110
            raise refuse(spec, program, errno.ESRCH, _gone(pid))
        where = "" if "/" in spec.path else " among what is mapped, libraries and commands"
        cause = Cause(f"there is no {spec.path}{where}", "give the whole path")
        raise refuse(spec, program, errno.ENOENT, cause)
    return path


def attach_uprobe(program_fd: int, program: ProgramFacts, spec: Uprobe | Uretprobe) -> Attached:
    """Attach to a function of a binary, its return, or an instruction."""
    path = locate(program, spec, spec.pid)
    offset = spec.offset
    if spec.symbol is not None:
        try:
            offset += function_offset(read_binary(path), path, spec.symbol)
        except FunctionNotFoundError as error:
            cause = Cause(str(error), error.remedy)
            raise refuse(spec, program, errno.ENOENT, cause) from error
        except FormatError as error:
            raise refuse(spec, program, errno.ENOEXEC, Cause(str(error))) from error
        except OSError as error:
            cause = Cause(f"read {path}: {error.strerror}")
            raise refuse(spec, program, error.errno, cause) from error
    places = (Place(offset),)
    is_return = isinstance(spec, Uretprobe)
    return attach_places(program_fd, program, spec, path, places, spec.pid, is_return=is_return)


def attach_places(
    program_fd: int,
    program: ProgramFacts,
    spec: Uprobe | Uretprobe | Usdt,
    path: str,
    places: Sequence[Place],
    pid: int | None,
    *,
    is_return: bool = False,
) -> Attached:
    """Attach to offsets of a file, in the way that the program was loaded for."""
    multi = program.attach_type == TRACE_UPROBE_MULTI
    with explained(spec, program, lambda code: _explain(code, path, pid, multi=multi)):
        if multi:
            if pid is not None and uprobe_way() != UprobeWay(multi=True, by_process=True):
                raise refuse(spec, program, None, _by_thread(spec, uprobe_way()))
            counters = [place.counter for place in places]
            cookies = [place.cookie or 0 for place in places]
            link = native.create_uprobe_link(
                program_fd,
                os.fsencode(path),
                [place.offset for place in places],
                counters=counters if any(counters) else None,
                cookies=cookies if any(cookies) else None,
                pid=pid or 0,
                is_return=is_return,
            )
            return Descriptors((link,))
        return _attach_by_perf(program_fd, program, spec, path, places, pid, is_return=is_return)


def _attach_by_perf(
    program_fd: int,
    program: ProgramFacts,
    spec: Uprobe | Uretprobe | Usdt,
    path: str,
    places: Sequence[Place],
    pid: int | None,
    *,
    is_return: bool,
) -> Attached:
    kind = pmu_number("uprobe")
    if kind is None:
        cause = missing_option("CONFIG_UPROBES", "CONFIG_UPROBE_EVENTS") or Cause(
            "this kernel has no uprobes",
            "use a kernel with CONFIG_UPROBE_EVENTS=y",
            UnsupportedError,
        )
        raise refuse(spec, program, errno.ENOENT, cause)
    returning = 1 << (pmu_number("uprobe", "format/retprobe") or 0) if is_return else 0
    with ExitStack() as undo:
        links = []
        for place in places:
            event = native.open_perf_event(
                kind,
                returning | place.counter << 32,
                name=os.fsencode(path),
                config2=place.offset,
                pid=-1 if pid is None else pid,
                cpu=0 if pid is None else -1,
            )
            links.append(run_on_perf_event(event, program_fd, place.cookie))
            undo.callback(links[-1].close)
        undo.pop_all()
        return Descriptors(links)


def _by_thread(spec: Uprobe | Uretprobe | Usdt, way: UprobeWay) -> Cause:
    remedies = ["Linux 6.10 or 6.6.33 or later", "no pid"]
    if way.multi:  # by perf it is right, and not allowed
        remedies.insert(1, "give CAP_SYS_ADMIN")
    if isinstance(spec, Usdt):
        # libbpf 1.3 to 1.4.4 loads USDT programs for multi links, whatever it is told.
        remedies.insert(-1, 'a SEC("uprobe") program, without arguments')
    return Cause(
        "this kernel's uprobe_multi links look at a process's first thread only",
        "; or ".join(remedies),
        UnsupportedError,
    )


def _gone(pid: int) -> Cause:
    return Cause(f"there is no process {pid}", "it has ended, or is in another pid namespace")


def _explain(code: int, path: str, pid: int | None, *, multi: bool) -> Cause:
    if code in (errno.EPERM, errno.EACCES):
        return privilege(code, NEEDED) if multi else privilege(code, ("cap_sys_admin",), BY_PERF)
    if code == errno.ESRCH and pid is not None:
        return _gone(pid)
    if code == errno.ENOENT:
        return Cause(f"there is no {path}")
    if code in (errno.EBADF, errno.EISDIR):
        return Cause(f"{path} is not a file")
    if code == errno.EIO:
        return Cause(f"the file system of {path} does not allow it", "copy the file elsewhere")
    if code in (errno.EINVAL, ENOTSUPP, errno.EOPNOTSUPP, errno.EILSEQ):
        return Cause(
            "the kernel cannot probe what is at this place",
            "an offset must be that of an instruction, counted from the beginning of the file",
        )
    return plain_cause(code)
