"""Say why the kernel refused an attachment: probe, program, errno, what is missing, the fix."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.errors import AttachError, PrivilegeError, UnsupportedError
from kerneltrace_core.kernel.config import read_config
from kerneltrace_core.kernel.privileges import explain_refusal, read_privileges
from kerneltrace_core.session.probe import Probe

__all__ = [
    "Cause",
    "code_name",
    "did_you_mean",
    "explained",
    "missing_option",
    "perf_privilege",
    "plain_cause",
    "privilege",
    "refuse",
]

PARANOID = "/proc/sys/kernel/perf_event_paranoid"
ENOTSUPP = 524  # the kernel's own, which it should not let out, and does


@dataclass(frozen=True)
class Cause:
    """Why something was refused, and what to do about it where that is certain. Immutable."""

    text: str
    remedy: str = ""
    kind: type[AttachError | PrivilegeError | UnsupportedError] = AttachError


def code_name(code: int) -> str:
    """Return ENOENT for 2."""
    return "ENOTSUPP" if code == ENOTSUPP else errno.errorcode.get(code, f"errno {code}")


def refuse(
    spec: Probe, program: ProgramFacts | str, code: int | None, cause: Cause
) -> AttachError | PrivilegeError | UnsupportedError:
    """Build the error; the caller raises it."""
    told = cause.text
    if code and not told.startswith(code_name(code)):
        told = f"{code_name(code)}: {told}"
    remedy = f" ({cause.remedy})" if cause.remedy else ""
    return cause.kind(f"attach {spec} to program {program}: {told}{remedy}", errno=code)


def plain_cause(code: int) -> Cause:
    """Say what an errno means that has no particular meaning for what was tried."""
    if code == errno.EEXIST:
        return Cause("the program is attached there already")
    if code == errno.E2BIG:
        return Cause("as many programs as the kernel allows are attached there")
    if code in (errno.EMFILE, errno.ENFILE):
        return Cause("no descriptor is left", "raise LimitNOFILE / ulimit -n")
    return Cause("the kernel does not support it" if code == ENOTSUPP else os.strerror(code))


@contextmanager
def explained(
    spec: Probe, program: ProgramFacts, explain: Callable[[int], Cause]
) -> Iterator[None]:
    """Turn the errno of a system call in the block into an error that says what it means."""
    try:
        yield
    except (AttachError, PrivilegeError) as error:
        code = error.errno or 0
        raise refuse(spec, program, code, explain(code)) from error


def privilege(code: int, wanted: Iterable[str], otherwise: str = "") -> Cause:
    """Explain EPERM or EACCES; ``otherwise`` may do without that privilege."""
    why = explain_refusal(code, read_privileges(), tuple(wanted))
    remedy = " or ".join(each for each in (why.remedy, otherwise) if each)
    return Cause(why.reason, remedy, PrivilegeError)


def read_paranoid(path: str = PARANOID) -> int | None:
    """Read kernel.perf_event_paranoid; None is could not tell."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def perf_privilege(code: int, wanted: str = "cap_perfmon", otherwise: str = "") -> Cause:
    """Explain EPERM or EACCES of perf_event_open(2)."""
    held = read_privileges().capabilities
    paranoid = read_paranoid()
    # Debian and Android refuse perf events altogether at 3, with CAP_PERFMON too.
    if paranoid is not None and paranoid > 2 and held and "cap_sys_admin" not in held.effective:
        lowering = "" if wanted == "cap_sys_admin" else "sysctl kernel.perf_event_paranoid=2, or "
        remedy = f"{lowering}give it CAP_SYS_ADMIN" + (f", or {otherwise}" if otherwise else "")
        text = f"kernel.perf_event_paranoid is {paranoid}, so perf events need CAP_SYS_ADMIN"
        return Cause(text, remedy, PrivilegeError)
    return privilege(code, (wanted,), otherwise)


def missing_option(*options: str, otherwise: str = "") -> Cause | None:
    """Return the cause if the kernel was built without one of ``options``; None: not known to."""
    config = read_config()
    if config is None:
        return None
    missing = [name for name in options if config.get(name, "n") == "n"]
    if not missing:
        return None
    return Cause(
        f"this kernel was built without {', '.join(missing)}",
        f"use a kernel with {'=y, '.join(missing)}=y" + (f", or {otherwise}" if otherwise else ""),
        UnsupportedError,
    )


def did_you_mean(names: Iterable[str]) -> str:
    """``did you mean a, b or c?``, or nothing."""
    told = list(names)
    if not told:
        return ""
    *first, last = told
    return f"did you mean {', '.join(first) + ' or ' if first else ''}{last}?"
