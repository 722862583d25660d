"""The helper of ``kerneltrace run``: a process that holds the programs and serves them."""

from __future__ import annotations

import errno
import os
import resource
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

from kerneltrace_core.cli.identity import Identity
from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.requests import TracerOptions
from kerneltrace_core.requests.programs import LoadedPrograms
from kerneltrace_core.requests.sharing.broker import BACKLOG, Broker
from kerneltrace_core.requests.sharing.offer import address_of

__all__ = ["start_helper"]

# It ends with the command; what is sent to the whole group or unit is not meant for it.
IGNORED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
LONGEST_PATH = 100  # of 107 bytes
PREFIX = "kerneltrace-"
# Between its bind and its listen a socket looks like one that nobody listens at.
STARTING_SECONDS = 5.0
FAILED = 1
STANDARD_LAST = 2  # of input, output and error


def start_helper(options: TracerOptions, identity: Identity, regions: int) -> str:
    """Load, start the helper, return the socket's address for the environment.

    Blocks for 60 ms and more with many regions. The helper serves this process, which it takes to
    become the command. Raises KernelTraceError, OSError; leaves nothing.
    """
    _fill_standard()
    programs = LoadedPrograms.load(
        options.probes, timed=options.syscalls == "time", regions=regions
    )
    with ExitStack() as undo:
        undo.callback(programs.close)
        programs.attach()
        folder, address, listening = _listen(identity)
        undo.callback(listening.close)
        if folder is not None:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
        main_pidfd = os.pidfd_open(os.getpid())
        undo.callback(os.close, main_pidfd)
        _fork_away(programs, listening, identity, main_pidfd, folder)
        undo.pop_all()
    # What this process has of it closes when it executes the command; the folder is the helper's.
    return address


def _fill_standard() -> None:
    """Let nothing of ours become a closed standard stream: the helper replaces those.

    For the command they are closed again: nothing that Python opens is inherited.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STANDARD_LAST:
        pass
    os.close(fd)


def _listen(identity: Identity) -> tuple[str | None, str, socket.socket]:
    """Bind in a folder that only the user can enter, or in the abstract namespace."""
    for place in _places(identity):
        _remove_orphans(Path(place))
        try:
            folder = tempfile.mkdtemp(prefix=PREFIX, dir=place)
        except OSError:
            continue
        path = f"{folder}/socket"
        listening = _socket()
        try:
            if len(path) > LONGEST_PATH:
                raise OSError("path too long")
            listening.bind(path)
            Path(path).chmod(0o600)
            if identity.change:
                os.chown(path, identity.uid, identity.gid)
                os.chown(folder, identity.uid, identity.gid)
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            shutil.rmtree(folder, ignore_errors=True)
            continue
        return folder, path, listening
    # Nowhere to write (a read-only root): no file mode guards this name, the check of uids does.
    address = f"@kerneltrace-{os.getpid()}-{secrets.token_hex(8)}"
    listening = _socket()
    listening.bind(address_of(address))
    listening.listen(BACKLOG)
    return None, address, listening


def _remove_orphans(place: Path) -> None:
    """Remove what helpers left that were killed: sockets at which nobody listens any more."""
    for folder in place.glob(f"{PREFIX}*"):
        path = folder / "socket"
        with suppress(OSError), _socket() as probe:
            found = folder.lstat()
            young = time.time() - found.st_mtime < STARTING_SECONDS
            if young or found.st_uid != os.geteuid() or not path.is_socket():
                continue
            probe.setblocking(False)
            if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                shutil.rmtree(folder, ignore_errors=True)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def _places(identity: Identity) -> Iterator[str]:
    systemd = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if systemd:
        yield systemd
    if not identity.change:
        if users := os.environ.get("XDG_RUNTIME_DIR"):
            yield users
        yield "/run"
    # Where the helper can remove its own folder though it is another user by then.
    with suppress(OSError):  # a read-only root has none
        yield tempfile.gettempdir()


def _fork_away(
    programs: LoadedPrograms,
    listening: socket.socket,
    identity: Identity,
    main_pidfd: int,
    folder: str | None,
) -> None:
    """Fork twice, so that the command has no child that it did not start; wait until it serves."""
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.close(reader)
        _be_helper(programs, listening, identity, main_pidfd, folder, writer)
    os.close(writer)
    os.waitpid(middle, 0)
    with open(reader, "rb") as told:
        said = told.read()
    if said != b"serving":
        raise KernelTraceError(f"start helper: {said.decode(errors='replace') or 'it has ended'}")


def _be_helper(
    programs: LoadedPrograms,
    listening: socket.socket,
    identity: Identity,
    main_pidfd: int,
    folder: str | None,
    writer: int,
) -> NoReturn:
    status = FAILED
    try:
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        _detach_from_terminal()
        _close_all_but({writer, main_pidfd, listening.fileno(), *programs.fds()})
        # As another user it may not.
        with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as name:
            name.write("kerneltrace-run")
        # Answers that a client leaves unread count against the limit of their sender.
        with suppress(OSError, ValueError):
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        broker = Broker(programs, listening, {0, identity.uid})
        by_root = os.geteuid() == 0
        identity.assume(environment=False)
        if not by_root:
            # Who asks trusts root and its own user, and is told who was the last to listen.
            listening.listen(BACKLOG)
        os.write(writer, b"serving")
        os.close(writer)
        broker.serve(main_pidfd)
        status = 0
    except BaseException as error:  # noqa: BLE001 - nobody is there to catch it
        with suppress(OSError):
            os.write(writer, f"{type(error).__name__}: {error}".encode())
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(status)


def _detach_from_terminal() -> None:
    """Whoever reads the command's output must see its end, so nothing of it may stay open here."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(STANDARD_LAST + 1):
        os.dup2(nothing, standard)
    os.chdir("/")


def _close_all_but(needed: set[int]) -> None:
    """Close what was handed to the command: who reads a pipe of it must see its end as well."""
    for fd in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if fd > STANDARD_LAST and fd not in needed:
            with suppress(OSError):  # what has listed them
                os.close(fd)
