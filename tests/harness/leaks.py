"""Look, after a session, for BPF programs and processes that its tests left behind.

Other people's programs may come and go meanwhile, so counting is not enough: a program is a leak
when it is new and no process but this session's own holds it. A process is this session's own when
its environment carries the session's mark.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import signal
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

MARK = "KERNELTRACE_TEST_SESSION"
# Programs are freed after a grace period of the kernel's; killed servers take a moment to go.
PATIENCE_SECONDS = 10.0

BPF_PROG_GET_NEXT_ID = 11
BPF_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280}


def program_ids() -> set[int] | None:
    """Return the ids of all loaded BPF programs; None where the kernel does not tell (no root)."""
    number = BPF_NUMBER.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    found: set[int] = set()
    last = 0
    while True:
        attr = ctypes.create_string_buffer(struct.pack("=III", last, 0, 0), 12)
        if libc.syscall(number, BPF_PROG_GET_NEXT_ID, attr, len(attr)) != 0:
            at_end = ctypes.get_errno() == 2  # ENOENT
            return found if at_end else None
        last = struct.unpack_from("=I", attr, 4)[0]
        found.add(last)


def parse_program_ids(fdinfo: Iterable[str]) -> set[int]:
    """Return the ids of the programs that one descriptor holds, from its lines in fdinfo."""
    return {
        int(value)
        for name, _, value in (line.partition(":") for line in fdinfo)
        if name == "prog_id" and int(value) > 0
    }


def held_by(process: Path) -> set[int]:
    """Return the ids of the programs that a process holds, /proc/PID given."""
    held: set[int] = set()
    try:
        entries = list((process / "fdinfo").iterdir())
    except OSError:
        return held  # it has ended while we looked
    for entry in entries:
        try:
            held |= parse_program_ids(entry.read_text().splitlines())
        except OSError:
            continue  # closed while we looked
    return held


def processes() -> Iterator[Path]:
    """Yield /proc/PID of every process."""
    yield from (path for path in Path("/proc").iterdir() if path.name.isdigit())


def carries(process: Path, mark: str) -> bool:
    """Tell whether a process was started with the session's mark in its environment."""
    try:
        return f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def is_zombie(process: Path) -> bool:
    """Tell whether a process has ended and only waits for its parent to ask."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class LeakCheck:
    """Remember the programs there are, and say later which new ones are ours."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.outer_mark = os.environ.get(MARK)
        self.before: set[int] | None = None
        self.found: list[str] = []

    def own_processes(self) -> list[Path]:
        """Return the processes of this session that still run, without this one."""
        return [
            path
            for path in processes()
            if int(path.name) != os.getpid() and carries(path, self.mark) and not is_zombie(path)
        ]

    def leaked_programs(self) -> set[int]:
        """Return the new programs that no stranger holds."""
        now = program_ids()
        if self.before is None or now is None:
            return set()
        new = now - self.before
        if new:
            for path in processes():
                if int(path.name) != os.getpid() and not carries(path, self.mark):
                    new -= held_by(path)
        return new

    def finish(self) -> None:
        """Wait until nothing is left or the patience ends; write down what is left, end it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        gc.collect()
        while True:
            alive, programs = self.own_processes(), self.leaked_programs()
            if not (alive or programs) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if programs:
            self.found.append(f"BPF programs still loaded: ids {sorted(programs)}")
        for path in alive:
            try:
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                os.kill(int(path.name), signal.SIGKILL)
            except OSError:
                continue
            self.found.append(f"process {path.name} still running (killed now): {command}")


CHECK = pytest.StashKey[LeakCheck]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Look at what is there before the first test, if there will be tests that may leak."""
    strict = any(
        item.get_closest_marker("kernel") or item.get_closest_marker("integration")
        for item in session.items
    )
    if strict and not session.config.option.collectonly:
        check = session.config.stash[CHECK] = LeakCheck()
        check.before = program_ids()
        os.environ[MARK] = check.mark


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Make a session red that leaves something behind."""
    check = session.config.stash.get(CHECK, None)
    if check is None:
        return
    check.finish()
    if check.outer_mark is None:
        os.environ.pop(MARK, None)
    else:
        os.environ[MARK] = check.outer_mark
    if check.found and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was left behind, or that it could not be looked for."""
    check = config.stash.get(CHECK, None)
    if check is None:
        return
    if check.found:
        terminalreporter.section("red: left behind", red=True)
        for line in check.found:
            terminalreporter.line(line)
    elif check.before is None:
        terminalreporter.line("leaked BPF programs: not looked for (needs CAP_SYS_ADMIN)")
