"""Asking over a Unix socket of packets: what comes back, what goes wrong, and for how long."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("kerneltrace_core._native.lib", reason="the compiled part is missing")

from kerneltrace_core._native import sharing

UID = os.geteuid()
SECONDS = 5.0


@contextlib.contextmanager
def served(folder: Path, answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Listen in a folder, and answer one request on a thread."""
    path = str(folder / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            thread.join()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_answer_comes_with_descriptors_that_no_program_inherits(tmp_path: Path) -> None:
    heard: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        heard.append(connection.recv(100))
        socket.send_fds(connection, [b"an answer"], [0, 1, 2])

    with served(tmp_path, answer) as path:
        packet, fds, lost = sharing.exchange(path, b"a request", UID, SECONDS)
    inherited = [os.get_inheritable(fd) for fd in fds]
    for fd in fds:
        os.close(fd)

    assert (packet, len(fds), lost, heard) == (b"an answer", 3, False, [b"a request"])
    assert inherited == [False] * 3


def test_an_abstract_address_begins_with_an_at_sign() -> None:
    name = f"kerneltrace-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind("\0" + name)
        listening.listen()
        with pytest.raises(TimeoutError):
            sharing.exchange("@" + name, b"x", UID, 0.05)


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("/nowhere/at/all", errno.ENOENT),
        ("@nobody-listens-here", errno.ECONNREFUSED),
        ("/" + "x" * 107, errno.ENAMETOOLONG),
        ("@" + "x" * 108, errno.ENAMETOOLONG),
        ("", errno.ECONNREFUSED),
    ],
)
def test_where_nobody_listens_the_error_names_the_address(address: str, code: int) -> None:
    before = descriptors()

    with pytest.raises(OSError, match="Errno") as refused:
        sharing.exchange(address, b"x", UID, SECONDS)

    assert (refused.value.errno, refused.value.filename) == (code, address)
    assert descriptors() == before


def test_who_says_nothing_is_not_waited_for_long(tmp_path: Path) -> None:
    done = threading.Event()
    before = descriptors()

    with served(tmp_path, lambda connection: done.wait(SECONDS)) as path:
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            sharing.exchange(path, b"x", UID, 0.1)
        took = time.monotonic() - begin
        done.set()

    assert 0.1 <= took < SECONDS
    assert descriptors() == before


def test_who_hangs_up_has_answered_nothing(tmp_path: Path) -> None:
    with served(tmp_path, lambda connection: connection.recv(100)) as path:
        assert sharing.exchange(path, b"x", UID, SECONDS) == (b"", [], False)


def test_descriptors_that_find_no_place_are_told_and_those_that_did_are_the_callers(
    tmp_path: Path,
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        taken = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
        free = [number for number in range(max(taken) + 5) if number not in taken]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[3], limits[1]))
        socket.send_fds(connection, [b"an answer"], [0] * 20)

    before = descriptors()
    try:
        with served(tmp_path, answer) as path:
            packet, fds, lost = sharing.exchange(path, b"x", UID, SECONDS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for fd in fds:
        os.close(fd)

    assert (packet, lost) == (b"an answer", True)
    assert 0 < len(fds) < 20
    assert descriptors() == before


def test_signals_are_looked_after_while_it_waits(tmp_path: Path) -> None:
    class Ended(BaseException):
        pass

    def end(number: int, frame: object) -> None:
        raise Ended

    done = threading.Event()
    before = descriptors()
    handler = signal.signal(signal.SIGALRM, end)
    try:
        with served(tmp_path, lambda connection: done.wait(SECONDS)) as path:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            begin = time.monotonic()
            with pytest.raises(Ended):
                sharing.exchange(path, b"x", UID, SECONDS)
            took = time.monotonic() - begin
            done.set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)

    assert took < SECONDS
    assert descriptors() == before


def test_a_signal_that_was_looked_after_does_not_lose_the_answer(tmp_path: Path) -> None:
    noticed = threading.Event()
    handler = signal.signal(signal.SIGALRM, lambda number, frame: noticed.set())
    path = str(tmp_path / "socket")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(path)
            listening.listen()

            def serve() -> None:
                first, _ = listening.accept()
                noticed.wait(SECONDS)  # and nothing to who was interrupted
                again, _ = listening.accept()
                again.recv(100)
                again.send(b"an answer")
                first.close()
                again.close()

            thread = threading.Thread(target=serve)
            thread.start()
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            found = sharing.exchange(path, b"x", UID, SECONDS)
            thread.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)

    assert found == (b"an answer", [], False)
