"""The one tree of exceptions; each leaf is also the builtin that a caller already knows."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AttachError",
    "ClosedError",
    "FormatError",
    "KernelTraceError",
    "LoadError",
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
    """Carry ``errno`` beside a whole message: OSError alone would print ``[Errno 1] ...``."""

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    def __reduce__(self) -> tuple[object, ...]:
        # OSError's own would lose errno, which is not among args.
        return type(self), self.args, {**self.__dict__, "errno": self.errno}


class PrivilegeError(_SystemError, PermissionError):
    """The kernel refused for want of a capability or by lockdown, seccomp or an LSM."""


class UnsupportedError(_SystemError):
    """The kernel, or the operating system, does not have what was asked for."""


class AttachError(_SystemError):
    """A loaded program could not be attached to its hook."""


class LoadError(_SystemError):
    """The kernel or libbpf refused a program, map or object.

    ``log`` holds every line that the verifier or libbpf wrote; ``str()`` shows the last
    telling ones and says how many it left out.
    """

    def __init__(self, message: str, *, errno: int | None = None, log: Sequence[str] = ()) -> None:
        super().__init__(message, errno=errno)
        self.message = message
        self.log: tuple[str, ...] = tuple(log)

    def __str__(self) -> str:
        told = [line.rstrip() for line in self.log if line.strip()]
        # The verifier ends with its statistics; they tell nothing about the cause.
        while told and told[-1].lstrip().startswith(("processed ", "verification time ")):
            told.pop()
        shown = told[-LINES_SHOWN:]
        left_out = len(told) - len(shown)
        lines = [self.message]
        if left_out:
            lines.append(f"  ({left_out} earlier log lines left out; all are in .log)")
        lines.extend(f"  {line}" for line in shown)
        return "\n".join(lines)


class RingError(_SystemError):
    """A ring or perf buffer could not be mapped, or holds what no kernel writes."""


class ClosedError(KernelTraceError, ValueError):
    """The object was closed before this call."""


class NativeMissingError(KernelTraceError, ImportError):
    """The compiled extension is missing or does not fit this interpreter."""
