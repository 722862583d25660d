"""The servers that Django runs under, started on loopback and ended by their process ids."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import kerneltrace_core
from harness.pace import time_factor
from kerneltrace_core.kernel.support import Support

TESTS = Path(__file__).parents[2]
WSGI, ASGI = "integration.served.wsgi:application", "integration.served.asgi:application"
SETTINGS = "integration.served.settings"
START_SECONDS, END_SECONDS, ANSWER_SECONDS = 40.0, 15.0, 40.0


class Kind(NamedTuple):
    """A server: its module and arguments, of which ``{port}`` is filled in."""

    module: str
    arguments: str
    workers: int = 1
    asgi: bool = True

    def installed(self) -> Support:
        try:
            importlib.metadata.version(self.module)
        except importlib.metadata.PackageNotFoundError:
            return Support.no(f"{self.module} is not installed")
        return Support.yes()


GUNICORN = "--bind 127.0.0.1:{port} --log-level warning --graceful-timeout 5"
KINDS = {
    "gunicorn-sync": Kind("gunicorn", f"{GUNICORN} --workers 2 {WSGI}", 2, asgi=False),
    "gunicorn-gthread": Kind(
        "gunicorn", f"{GUNICORN} --workers 2 --threads 8 {WSGI}", 2, asgi=False
    ),
    "gunicorn-preload": Kind(
        "gunicorn", f"{GUNICORN} --preload --workers 4 --threads 4 {WSGI}", 4, asgi=False
    ),
    "runserver": Kind("django", "runserver 127.0.0.1:{port}", asgi=False),
    "granian-wsgi": Kind(
        "granian", f"--interface wsgi --port {{port}} --workers 2 {WSGI}", 2, asgi=False
    ),
    "uvicorn": Kind("uvicorn", f"--port {{port}} --log-level warning {ASGI}"),
    "uvicorn-workers": Kind(
        "uvicorn", f"--port {{port}} --log-level warning --loop asyncio --workers 2 {ASGI}", 2
    ),
    "hypercorn": Kind("hypercorn", f"--bind 127.0.0.1:{{port}} {ASGI}"),
    "daphne": Kind("daphne", f"--port {{port}} --verbosity 0 {ASGI}"),
    "gunicorn-asgi": Kind("gunicorn", f"{GUNICORN} --worker-class asgi --workers 2 {ASGI}", 2),
    "granian": Kind("granian", f"--interface asgi --port {{port}} --workers 2 {ASGI}", 2),
}


class Answer(NamedTuple):
    status: int
    body: bytes


class Server:
    """A running server: what it is asked, and what its workers wrote down."""

    def __init__(self, kind: Kind, folder: Path, port: int, process: subprocess.Popen[bytes]):
        self.kind = kind
        self.folder = folder
        self.port = port
        self.process = process

    def ask(self, path: str, method: str = "GET") -> Answer:
        """Ask, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, path, headers={"connection": "close"})
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()

    def leave(self, path: str, after_bytes: int) -> None:
        """Ask, and go away in the middle of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), ANSWER_SECONDS) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            while after_bytes > 0:
                received = connection.recv(1 << 16)
                assert received, "it ended by itself"
                after_bytes -= len(received)

    def wait_for_another_worker(self, path: str, pid: int) -> None:
        """Ask until a process other than ``pid`` answers."""
        end = time.monotonic() + START_SECONDS * time_factor()
        while True:
            assert time.monotonic() < end, f"no reload\n{self.said()}"
            try:
                if json.loads(self.ask(path).body)["pid"] != pid:
                    return
            except (OSError, http.client.HTTPException):
                pass  # between the two
            time.sleep(0.05)

    def rows(self) -> list[dict[str, Any]]:
        """Return what was written down until now."""
        found = []
        for file in self.folder.glob("*.jsonl"):
            lines = file.read_text().splitlines(keepends=True)
            found += [json.loads(line) for line in lines if line.endswith("\n")]
        return found

    def wait_for(self, paths: set[str]) -> list[dict[str, Any]]:
        """Return what was written down, as soon as there is something about each path."""
        end = time.monotonic() + ANSWER_SECONDS * time_factor()
        while True:
            rows = self.rows()
            missing = paths - {row["path"] for row in rows}
            if not missing:
                return rows
            assert time.monotonic() < end, f"never told of: {sorted(missing)}\n{self.said()}"
            time.sleep(0.02)

    def said(self) -> str:
        """Return what the server wrote to its output."""
        return (self.folder / "output").read_text(errors="replace")


def command(kind: Kind, port: int) -> list[str]:
    """Return the command line of a server."""
    arguments = kind.arguments.format(port=port).split()
    return [sys.executable, "-m", kind.module, *arguments]


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return this process's environment with the paths that the site needs, less our options."""
    clean = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith("KERNELTRACE_") or name == "KERNELTRACE_TEST_SESSION"
    }
    paths = (TESTS, Path(kerneltrace_core.__file__).parents[1], folder)
    return {
        **clean,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Where gunicorn puts its control socket.
        "HOME": str(folder),
        "DJANGO_SETTINGS_MODULE": SETTINGS,
        "SERVED_FOLDER": str(folder),
        **variables,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(
    kind: Kind, folder: Path, *, before: tuple[str, ...] = (), ready: str = "", **variables: str
) -> Iterator[Server]:
    """Run a server for the block, once it answers at ``ready``."""
    for again in (True, False):
        port = free_port()
        with open(folder / "output", "ab") as output:
            process = subprocess.Popen(
                [*before, *command(kind, port)],
                cwd=folder,
                env=environment(folder, **variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Its own group, of which nothing may remain.
                start_new_session=True,
            )
        server = Server(kind, folder, port, process)
        try:
            if _wait_until_ready(server, ready) or not again:
                yield server
                return
        finally:
            end(process)


def _wait_until_ready(server: Server, path: str) -> bool:
    """Return False if it ended, which is what it does if somebody else took the port."""
    end = time.monotonic() + START_SECONDS * time_factor()
    while server.process.poll() is None:
        try:
            server.ask(path)
        except OSError:
            assert time.monotonic() < end, f"does not start:\n{server.said()}"
            time.sleep(0.02)
        else:
            return True
    assert "in use" in server.said(), f"ended at its start:\n{server.said()}"
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server politely, and what then remains of its group at once."""
    if process.poll() is None:
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
