"""How a command reaches a running server's memory: a Unix socket for each of its processes."""

from __future__ import annotations

import atexit
import errno
import json
import os
import secrets
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

__all__ = ["RecentServer", "ask", "ask_all"]

Documents = Callable[[], list[dict[str, Any]]]

ANSWER_SECONDS = 1.0  # for one that asks and does not read
ASK_SECONDS = 3.0
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class RecentServer:
    """Answers whoever connects with one JSON document, from a daemon thread.

    Only the user of this process and root get an answer: the folder has to be the user's, the
    socket's mode is 0600, and each peer is asked for its uid. ``close`` may come from any thread;
    a forked child that closes it gives up its copy and leaves its parent's alone.
    """

    def __init__(self, listener: socket.socket, path: Path, documents: Documents) -> None:
        self.path = path
        self._listener = listener
        self._documents = documents
        self._pid = os.getpid()
        self.closed = False

    @classmethod
    def open(cls, folder: str, documents: Documents) -> RecentServer:
        """Listen in ``folder``, which is made if it is missing. Raises OSError."""
        directory = Path(folder)
        directory.mkdir(mode=0o700, exist_ok=True)
        _check(directory)
        # A name of its own: the same pid may be another container's, or a dead process's.
        path = directory / f"{os.getpid()}-{secrets.token_hex(4)}.sock"
        with ExitStack() as undo:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(listener.close)
            # Before bind: the file is made with this mode.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(path))
            undo.callback(path.unlink)
            listener.listen(8)
            server = cls(listener, path, documents)
            threading.Thread(target=server._run, name="kerneltrace-recent", daemon=True).start()
            undo.pop_all()
        atexit.register(server.close)
        return server

    def close(self) -> None:
        """Stop answering; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        atexit.unregister(self.close)
        if self._pid == os.getpid():
            with suppress(OSError):
                self.path.unlink()
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()

    def _run(self) -> None:
        while not self.closed:
            try:
                peer, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in SHORTAGES:
                    return
                time.sleep(ANSWER_SECONDS)
                continue
            with peer, suppress(OSError):
                peer.settimeout(ANSWER_SECONDS)
                if _uid_of(peer) in (0, os.geteuid()):
                    answer = {"pid": os.getpid(), "requests": self._documents()}
                    peer.sendall(json.dumps(answer, default=str).encode())


def _check(directory: Path) -> None:
    found = directory.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"the folder belongs to uid {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise PermissionError(errno.EPERM, f"others may write to the folder (mode {mode:o})")


def _uid_of(peer: socket.socket) -> int:
    uid: int = PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))[1]
    return uid


def ask(path: Path) -> dict[str, Any]:
    """Return what the process behind a socket remembers. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(ASK_SECONDS)
        peer.connect(str(path))
        parts = []
        while part := peer.recv(1 << 16):
            parts.append(part)
    if not parts:
        raise PermissionError(errno.EPERM, "it answers only its own user and root")
    try:
        answer: dict[str, Any] = json.loads(b"".join(parts))
    except ValueError as error:
        raise OSError(errno.EPROTO, "its answer has no end") from error
    return answer


def ask_all(folder: str) -> Iterator[tuple[Path, dict[str, Any] | OSError]]:
    """Ask every process that answers in ``folder``, and take away what killed ones have left."""
    for path in sorted(Path(folder).glob("*.sock")):
        try:
            yield path, ask(path)
        except ConnectionRefusedError:
            with suppress(OSError):
                path.unlink()
        except FileNotFoundError:
            pass  # it has just ended
        except OSError as error:
            yield path, error
