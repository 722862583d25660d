"""``kerneltrace run -- CMD``: load with privileges, give them all up, become CMD."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import suppress

from kerneltrace_core.errors import KernelTraceError, OptionError

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "execute"]

SUMMARY = "run a server whose workers share one kernel side, without any capability"
DESCRIPTION = """\
Load the request programs, give up every capability (and become --user), and execute CMD in
place of this process. Its processes join over a Unix socket that KERNELTRACE_SOCKET names, and
need no privilege. A helper process serves the socket as long as CMD and its workers live.
Which groups are loaded say KERNELTRACE_PROBES and KERNELTRACE_SYSCALLS.
"""

# As env(1), chroot(8) and others have it.
FAILED, CANNOT_EXECUTE, NOT_FOUND = 125, 126, 127
REGIONS_MIN, REGIONS_MAX = 8, 64
# Python ignores these; a command expects what any other parent would hand it.
PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)


def default_processes() -> int:
    """Return room for twice the usual number of workers, so that a reload finds some.

    Each costs 2.8 MB of kernel memory.
    """
    cpus = len(os.sched_getaffinity(0))
    return max(REGIONS_MIN, min(REGIONS_MAX, 2 * (2 * cpus + 1)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "kerneltrace run [--user USER] [--processes N] [--required] -- CMD [ARGUMENT...]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--user", metavar="USER", help="become this user (name or uid) as well")
    parser.add_argument(
        "--processes",
        metavar="N",
        type=_positive,
        default=None,
        help=f"how many processes can join at a time (here {default_processes()})",
    )
    parser.add_argument(
        "--required",
        action="store_true",
        help="exit with 125 if the programs cannot be loaded (else CMD runs without them)",
    )
    parser.add_argument("cmd", metavar="CMD", nargs=argparse.REMAINDER)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def execute(given: argparse.Namespace) -> int:
    """Become the command; return a status only if that is not possible."""
    command = given.cmd[1:] if given.cmd[:1] == ["--"] else given.cmd
    if not command:
        return _fail(FAILED, "no command given (kerneltrace run -- CMD)")
    from kerneltrace_core.cli.identity import Identity
    from kerneltrace_core.requests import TracerOptions, resolve

    try:
        identity = Identity.find(given.user)
        options = resolve(TracerOptions)
    except OptionError as error:
        return _fail(FAILED, str(error))
    os.environ.pop("KERNELTRACE_SOCKET", None)
    if options.enabled and options.backend in ("auto", "bpf"):
        from kerneltrace_core.cli.helper import start_helper

        try:
            os.environ["KERNELTRACE_SOCKET"] = start_helper(
                options, identity, given.processes or default_processes()
            )
        except (KernelTraceError, OSError) as error:
            from kerneltrace_core.requests.backends import describe

            if given.required or options.required:
                return _fail(FAILED, describe(error))
            print(f"kerneltrace run: {describe(error)}; running without", file=sys.stderr)
    try:
        identity.assume()
    except (KernelTraceError, OSError) as error:
        return _fail(FAILED, f"give up privileges: {error}")
    return _become(command)


def _become(command: list[str]) -> int:
    for ignored in PYTHON_IGNORES:
        signal.signal(ignored, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed when this process started
            with suppress(OSError, ValueError):
                stream.flush()
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        return _fail(NOT_FOUND, f"{command[0]}: no such command")
    except OSError as error:
        return _fail(CANNOT_EXECUTE, f"{command[0]}: {error.strerror}")


def _fail(status: int, why: str) -> int:
    print(f"kerneltrace run: {why}", file=sys.stderr)
    return status
