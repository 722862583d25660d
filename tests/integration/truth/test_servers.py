"""Real servers: no connection carries one request's record into the next."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from integration.truth.conftest import environment
from integration.truth.work import CALLS, SENT_BYTES, WRITE_BYTES

pytestmark = pytest.mark.integration

PATIENCE_SECONDS = 30.0
UPLOAD_BYTES = 5 * 1024 * 1024
CONNECTIONS = 12
PIPELINED = 10
# First of all, one of each way: what it imports late reads and opens files. Served one by one.
WARM_UP = ("/coroutine/2", "/tasks/3", "/thread/4")
KEPT = 6
SERVERS = [
    *(("uvicorn", loop, http) for loop in ("asyncio", "uvloop") for http in ("h11", "httptools")),
    ("hypercorn", "asyncio", "h11"),
    ("hypercorn", "trio", "h11"),
]
Row = dict[str, Any]


class Running:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], port: int, out: Path) -> None:
        self._process = process
        self._port = port
        self._out = out

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_SECONDS)

    def warm_up(self) -> None:
        """Wait until requests are traced, and serve one of each way."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with closing(self.connect()) as connection, connection.makefile("rb") as stream:
            body = b""
            while body != b"bpf":
                assert self._process.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, f"still {body!r}"
                connection.sendall(request("/ready"))
                _, body = read_response(stream)
            for path in WARM_UP:
                connection.sendall(request(path, b"body" if "coroutine" in path else b""))
                read_response(stream)

    def stop(self) -> list[Row]:
        """End the server; return what it wrote down."""
        self._process.send_signal(signal.SIGTERM)
        _, errors = self._process.communicate(timeout=PATIENCE_SECONDS)
        assert errors == ""
        return [json.loads(line) for line in self._out.read_text().splitlines()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str, str, str], Running]]:
    """Return a function that starts a server and waits until it traces."""
    with ExitStack() as undo:

        def run(server: str, loop: str, http: str) -> Running:
            listening = undo.enter_context(socket.create_server(("127.0.0.1", 0)))
            descriptor = listening.fileno()
            out = tmp_path / "rows"
            process = subprocess.Popen(
                [
                    *(sys.executable, "-B", "-m", "integration.truth.served"),
                    *("--server", server, "--loop", loop, "--http", http),
                    *("--socket", str(descriptor), "--out", str(out)),
                ],
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[descriptor],
                env=environment(),
            )
            undo.enter_context(process)
            undo.callback(process.kill)
            running = Running(process, listening.getsockname()[1], out)
            running.warm_up()
            return running

        yield run


def request(path: str, body: bytes = b"") -> bytes:
    method = "POST" if body else "GET"
    head = f"{method} {path} HTTP/1.1\r\nHost: truth\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read_response(stream: BinaryIO) -> tuple[int, bytes]:
    """Read one response; return its size on the wire, and its body."""
    line = stream.readline()
    assert line.split()[1] == b"200", line
    size, length = len(line), 0
    while (line := stream.readline()) != b"\r\n":
        size += len(line)
        name, _, value = line.lower().partition(b":")
        if name == b"content-length":
            length = int(value)
    body = stream.read(length)
    return size + 2 + length, body


def talk(running: Running, first: int) -> dict[str, int]:
    """Upload, then pipeline, then ask one by one, on one connection; return sizes by path."""
    sizes: dict[str, int] = {}
    ways = ("coroutine", "tasks", "thread")
    paths = [f"/{ways[n % 3]}/{first + n}" for n in range(1 + PIPELINED + KEPT)]
    with closing(running.connect()) as connection, connection.makefile("rb") as stream:
        connection.sendall(request(paths[0].replace("tasks", "coroutine"), bytes(UPLOAD_BYTES)))
        sizes[paths[0]], body = read_response(stream)
        assert body == str(UPLOAD_BYTES).encode()
        connection.sendall(b"".join(map(request, paths[1 : 1 + PIPELINED])))
        for path in paths[1 : 1 + PIPELINED]:
            sizes[path], _ = read_response(stream)
        for path in paths[1 + PIPELINED :]:
            connection.sendall(request(path))
            sizes[path], _ = read_response(stream)
    return sizes


@pytest.mark.parametrize(("server", "loop", "http"), SERVERS)
def test_kept_and_pipelined_connections_give_each_request_its_own_numbers(
    start: Callable[[str, str, str], Running], server: str, loop: str, http: str
) -> None:
    running = start(server, loop, http)
    per_connection = 3 * (1 + PIPELINED + KEPT)  # a number whose first path is the coroutine's

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        firsts = [7 + per_connection * number for number in range(CONNECTIONS)]
        sizes: dict[str, int] = {}
        for answered in pool.map(lambda first: talk(running, first), firsts):
            sizes |= answered
    rows = running.stop()

    first, rows = rows[: len(WARM_UP)], rows[len(WARM_UP) :]
    assert [row["path"] for row in first] == list(WARM_UP)
    assert sorted(row["path"] for row in rows) == sorted(sizes)
    # Also a library that is imported in mid-request hands over the request's work.
    wrongs = [
        f"{row['path']}: {name} is {row['response'][name]}, not {row['expected'][name]}"
        for row in first
        for name in CALLS
        if row["response"][name] != row["expected"][name]
    ]
    for row in rows:
        found = {
            name: row["response"][name] + ((row["background"] or {}).get(name) or 0)
            for name in row["expected"]
        }
        # What the server itself sends while the request is current is the request's as well.
        found["net_tx_bytes"] -= sent_by_server(server, loop, row, sizes, found)
        found["write_bytes"] -= found["write_bytes"] % WRITE_BYTES if loop == "uvloop" else 0
        wrongs += [
            f"{row['path']}: {name} is {found[name]}, not {own}"
            for name, own in row["expected"].items()
            if found[name] != own
        ]
    assert wrongs == []


def sent_by_server(
    server: str, loop: str, row: Row, sizes: dict[str, int], found: dict[str, int]
) -> int:
    """Return how many bytes the server may have sent while the request was current."""
    more = found["net_tx_bytes"] - row["expected"]["net_tx_bytes"]
    if server == "uvicorn" and loop == "asyncio" and "thread" not in row["path"]:
        return sizes[row["path"]]  # written at once, in the request's own step: exactly
    return more if 0 <= more <= sizes[row["path"]] + SENT_BYTES else 0
