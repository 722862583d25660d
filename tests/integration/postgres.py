"""A PostgreSQL server of the test session's own: a free port, a temporary folder, its own user."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kerneltrace_core.kernel.support import Support

USER = "postgres"  # made by Debian's package; the server refuses to run as root
SECONDS = 60.0


def programs() -> Path | None:
    """Return the folder of initdb and postgres: the newest of Debian's, or what is on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).resolve().parent if on_path else None


def _version(program: Path) -> int:
    name = program.parent.parent.name
    return int(name) if name.isdigit() else 0


def probe() -> Support:
    """Say whether the package is there."""
    if programs() is None:
        return Support.no("initdb is not installed (Debian: postgresql)")
    return Support.yes()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def postgres() -> Iterator[dict[str, dict[str, Any]]]:
    """Run a server; yields entries for DATABASES: ``tcp`` and ``unix``."""
    bin_folder = programs()
    assert bin_folder is not None
    with tempfile.TemporaryDirectory(prefix="kt-pg-") as name:
        folder, port = Path(name), free_port()
        as_user: tuple[str, ...] = ()
        if os.geteuid() == 0:
            shutil.chown(folder, USER, USER)
            as_user = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
        data = str(folder / "data")
        subprocess.run(
            [*as_user, bin_folder / "initdb", "-D", data, "-U", USER, "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=folder,
            timeout=SECONDS,
        )
        said = (folder / "log").open("wb+")
        server = subprocess.Popen(
            [
                *(*as_user, bin_folder / "postgres", "-D", data, "-p", str(port)),
                *("-k", name, "-h", "127.0.0.1", "-F", "-c", "jit=off"),
            ],
            stdout=said,
            stderr=said,
            cwd=folder,
        )
        try:
            _wait_for(server, port, folder / "log")
            entry = {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": "postgres",
                "USER": USER,
                "PORT": str(port),
            }
            yield {"tcp": {**entry, "HOST": "127.0.0.1"}, "unix": {**entry, "HOST": name}}
        finally:
            said.close()
            server.send_signal(signal.SIGINT)  # "fast": does not wait for clients
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg

    until = time.monotonic() + SECONDS
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user=USER, dbname="postgres").close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > until:
                raise AssertionError(log.read_text()) from None
            time.sleep(0.05)
        else:
            return
