"""Processes that share by pins, which tests start, tell to go, and kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["ABI", "BPFFS", "Member", "folders", "members", "wait_until_unpinned"]

BPFFS = Path("/sys/fs/bpf")
GONE_SECONDS = 20
# Of this run alone: other workers on this machine have pins of their own.
ABI = f"test{os.getpid()}x"

# A member that tells what it found, and lives until its standard input ends. BEFORE and AFTER are
# what a test has it do before it joins and before it leaves.
MEMBER = """
import json, os, struct, sys, time
sys.path[:0] = json.loads(os.environ["PATHS"])
from pathlib import Path
from kerneltrace_core.errors import KernelTraceError
from kerneltrace_core.requests import layout
from kerneltrace_core.requests.sharing import abi, folders, pins
pins.abi_hash = lambda *more: os.environ["ABI"]
pins.WAIT_SECONDS = float(os.environ.get("WAIT", "20"))
CALL = layout.SLOTS_OFFSET + 8 * (layout.CALL + layout.CALL_INDEX["getppid"] * layout.CALL_WORDS)
exec(os.environ.get("BEFORE", ""))
begin = time.monotonic()
try:
    side = pins.join_pinned(("sched", "syscalls"), timed=True)
except (KernelTraceError, OSError) as error:
    print(json.dumps({"error": str(error), "took": time.monotonic() - begin}), flush=True)
    sys.exit()
side.register(0)
for _ in range(100):
    os.getppid()
side.leave()
count = struct.unpack_from("Q", side.memory, CALL)[0]
found = {"index": side.process, "count": count, "groups": side.plan.groups}
print(json.dumps(found), flush=True)
sys.stdin.read()
exec(os.environ.get("AFTER", ""))
side.close()
"""


def folders() -> set[Path]:
    """Return the folders of pins of this run."""
    return set(BPFFS.glob(f"kerneltrace-*-{ABI}*"))


def wait_until_unpinned(before: set[Path]) -> None:
    """Wait for whoever removes the pins that have been made since; fail if nobody does."""
    deadline = time.monotonic() + GONE_SECONDS
    while left := folders() - before:
        assert time.monotonic() < deadline, [list(folder.iterdir()) for folder in left]
        time.sleep(0.02)


class Member:
    """A process that is a member, until it is told to go or killed."""

    def __init__(self, *command: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*(command or (sys.executable,)), "-c", MEMBER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PATHS": json.dumps(sys.path), "ABI": f"{ABI}0", **variables},
            text=True,
        )
        self.pid = self.process.pid

    def told(self) -> dict[str, Any]:
        """Return what it found; a second time it waits for what AFTER tells."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found: dict[str, Any] = json.loads(line)
        return found

    def release(self) -> None:
        """Tell it to leave."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def go(self) -> None:
        """Tell it to leave, and wait until it has ended."""
        self.release()
        self.process.wait(30)

    def kill(self) -> None:
        """Kill it, if it lives, wait for its end, and forget what it told."""
        self.process.kill()
        self.process.wait(30)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@contextmanager
def members(count: int, *command: str, **variables: str) -> Iterator[list[Member]]:
    """Start so many at once, by a command's interpreter, if it is another; kill who is left."""
    found = [Member(*command, **variables) for _ in range(count)]
    try:
        yield found
    finally:
        for member in found:
            member.kill()
