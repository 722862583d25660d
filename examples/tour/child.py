"""The traced application as a child process, ended with us whatever happens."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parents[1]
READY = re.compile(r"Uvicorn running on (http://\S+)")
START_SECONDS, END_SECONDS = 20.0, 5.0


class Application:
    """uvicorn with examples/fastapi_app.py; ``notices`` are the lines that are not uvicorn's."""

    def __init__(self, *options: str, quiet: bool = True) -> None:
        self.notices: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_app:app"]
        self.process = subprocess.Popen(
            [
                *command,
                "--host",
                "127.0.0.1",
                "--loop",
                "asyncio",
                "--no-access-log",
                "--no-use-colors",
                *options,
            ],
            # Its own session: Ctrl-C reaches us, and we end it in order.
            start_new_session=True,
            stderr=subprocess.PIPE if quiet else None,
            text=True,
        )
        if quiet:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            found = READY.search(line)
            if found:
                self.url = found[1]
                self._ready.set()
            elif not line.startswith("INFO:"):
                self.notices.append(line.rstrip())
        self._ready.set()

    def wait_until_ready(self) -> str:
        """Return its address, or end with what it said."""
        self._ready.wait(START_SECONDS)
        if not self.url:
            said = "\n".join(self.notices) or f"nothing in {START_SECONDS:.0f} s"
            raise SystemExit(f"demo: the application did not start; it said:\n{said}")
        return self.url

    def end(self) -> None:
        """End it: politely, then not."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def application(*options: str, quiet: bool = True) -> Iterator[Application]:
    """Run the application for the block; SIGTERM ends the block as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    child = Application(*options, quiet=quiet)
    try:
        yield child
    finally:
        child.end()


def free_port(wanted: int) -> int:
    """Return the wanted port of loopback if it is free, else one that is."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("demo: no port of 127.0.0.1 is free")
