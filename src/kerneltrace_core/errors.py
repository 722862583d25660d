"""The one tree of exceptions; each leaf is also the builtin that a caller already knows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

__all__ = [
    "AttachError",
    "ClosedError",
    "EventLayoutError",
    "FormatError",
    "KernelTraceError",
    "LoadError",
    "MapEmptyError",
    "MapError",
    "MapFullError",
    "MapKeyError",
    "MapKeyExistsError",
    "NativeMissingError",
    "OptionError",
    "PrivilegeError",
    "RingError",
    "UnsupportedError",
]

LINES_SHOWN = 6


class KernelTraceError(Exception):
    """Root of every error that kerneltrace raises on purpose.

    Messages read ``act object: cause (remedy)``, the remedy only where it is certain.
    """


class OptionError(KernelTraceError, ValueError):
    """An option has an unknown name or a value that would be misread."""


class FormatError(KernelTraceError, ValueError):
    """An ELF file or its BTF is malformed, cut short, or says what cannot be."""


class _SystemError(KernelTraceError, OSError):
    """Carry ``errno`` beside a whole message: OSError alone would print ``[Errno 1] ...``.

    ``log`` holds every line that the verifier or libbpf wrote, if they were asked.
    """

    def __init__(self, message: str, *, errno: int | None = None, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.errno = errno
        self.log: tuple[str, ...] = tuple(log)

    def __reduce__(self) -> tuple[object, ...]:
        # OSError's own would lose errno, which is not among args.
        return type(self), self.args, {**self.__dict__, "errno": self.errno}


class PrivilegeError(_SystemError, PermissionError):
    """The kernel refused for want of a capability or by lockdown, seccomp or an LSM.

    ``log`` holds libbpf's lines where it was at work, which name the program.
    """

    def __init__(self, message: str, *, errno: int | None = None, log: Sequence[str] = ()) -> None:
        super().__init__(message, errno=errno)
        self.log: tuple[str, ...] = tuple(log)


class UnsupportedError(_SystemError):
    """The kernel, or the operating system, does not have what was asked for."""


class AttachError(_SystemError):
    """A loaded program could not be attached to its hook."""


class LoadError(_SystemError):
    """The kernel or libbpf refused a program, map or object.

    ``log`` holds every line that the verifier or libbpf wrote; ``str()`` shows the telling ones
    (of the verifier: its verdict, the instruction and the line of C) and how many it left out.
    """

    def __init__(self, message: str, *, errno: int | None = None, log: Sequence[str] = ()) -> None:
        super().__init__(message, errno=errno, log=log)
        self.message = message

    def __str__(self) -> str:
        told = [line.rstrip() for line in self.log if line.strip()]
        shown = _verdict(told) or _last_lines(told)
        left_out = len(told) - len(shown)
        lines = [self.message]
        if left_out:
            lines.append(f"  ({left_out} other log lines left out; all are in .log)")
        lines.extend(f"  {line}" for line in shown)
        return "\n".join(lines)


LOG_BEGIN, LOG_END = "-- BEGIN PROG LOAD LOG --", "-- END PROG LOAD LOG --"
INSTRUCTION = re.compile(r"\d+: \([0-9a-f]{2}\) ")
INSTRUCTIONS_SHOWN = 3
# Registers, branches and precision marks: how the verifier thinks, not what it objects to.
THINKING = re.compile(
    r"R\d+(_\w+)?=|\d+: (R\d|frame\d|safe)|frame\d|(cur|old) state:|from \d+ to |mark_precise|"
    r"regs=|parent |last_idx |processed \d|verification time |stack depth |arg#\d reference type"
)


def _last_lines(told: Sequence[str]) -> list[str]:
    said = list(told)
    # The verifier ends with its statistics; they tell nothing about the cause.
    while said and said[-1].lstrip().startswith(("processed ", "verification time ")):
        said.pop()
    return said[-LINES_SHOWN:]


def _verdict(told: Sequence[str]) -> list[str]:
    """Return what the verifier objects to, behind the last instructions that it looked at."""
    begins = [number for number, line in enumerate(told) if line.endswith(LOG_BEGIN)]
    if not begins:
        return []
    log = list(_until_end(told[begins[-1] + 1 :]))
    at = [number for number, line in enumerate(log) if INSTRUCTION.match(line)]
    last = at[-1] if at else -1
    objections = [line for line in log[last + 1 :] if not THINKING.match(line.lstrip())]
    if not objections:
        return []
    first = at[-INSTRUCTIONS_SHOWN] if len(at) >= INSTRUCTIONS_SHOWN else at[0] if at else 0
    if first and log[first - 1].startswith(";"):
        first -= 1
    # Behind an instruction stand the registers as it left them.
    steps = [
        line.partition(" ; ")[0].rstrip()
        for line in log[first : last + 1]
        if INSTRUCTION.match(line) or (line.startswith(";") and not line.startswith(";  @"))
    ]
    return [*steps, *objections[-LINES_SHOWN:]]


def _until_end(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if line.endswith(LOG_END):
            return
        yield line


class RingError(_SystemError):
    """A ring or perf buffer could not be mapped, or holds what no kernel writes."""


class MapError(_SystemError):
    """The kernel refused to do something with a map."""


class MapFullError(MapError):
    """A map has no room for another entry."""


class _MapLookupError(KernelTraceError, LookupError):
    def __str__(self) -> str:
        # KeyError's own would print a message in quotes, as if it were the key.
        return Exception.__str__(self)


class MapKeyError(_MapLookupError, KeyError):
    """A map does not have the key."""


class MapKeyExistsError(_MapLookupError, KeyError):
    """A map has the key already, which was to be new."""


class MapEmptyError(_MapLookupError, IndexError):
    """A queue or a stack has nothing to give."""


class EventLayoutError(KernelTraceError, TypeError):
    """A declared event is not what the object has; the text is a table of the differences."""


class ClosedError(KernelTraceError, ValueError):
    """The object was closed before this call."""


class NativeMissingError(KernelTraceError, ImportError):
    """The compiled extension is missing or does not fit this interpreter."""
