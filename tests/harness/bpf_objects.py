"""Which BPF objects processes hold, and whether the kernel still has them."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.leaks import MARK, carries, processes
from harness.pace import time_factor

BPF_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
# The commands of bpf(2) that return the next id, and what fdinfo calls an id of the kind.
NEXT_ID = {"prog_id": 11, "map_id": 12, "link_id": 31}
BPFTOOL = {"prog_id": "prog", "map_id": "map", "link_id": "link"}
GONE_SECONDS = 20.0

Objects = set[tuple[str, int]]


def all_objects() -> Objects:
    """Return the ids of every program, map and link of the kernel. Needs CAP_SYS_ADMIN."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = BPF_NUMBER[platform.machine()]
    found: Objects = set()
    for kind, command in NEXT_ID.items():
        last = 0
        while True:
            attr = ctypes.create_string_buffer(struct.pack("=III", last, 0, 0), 12)
            if libc.syscall(number, command, attr, len(attr)) != 0:
                break
            last = struct.unpack_from("=I", attr, 4)[0]
            found.add((kind, last))
    return found


def objects_by_bpftool() -> Objects:
    """Return the same as bpftool lists it; nothing where it is not installed, or lists no such."""
    found: Objects = set()
    for kind, noun in BPFTOOL.items() if shutil.which("bpftool") else ():
        done = subprocess.run(
            ["bpftool", "-j", noun, "list"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            found |= {(kind, entry["id"]) for entry in json.loads(done.stdout)}
    return found


def held_objects(pids: Iterable[int]) -> Objects:
    """Return the objects that processes hold by descriptors at this moment."""
    found: Objects = set()
    for pid in pids:
        try:
            entries = list(Path(f"/proc/{pid}/fdinfo").iterdir())
        except OSError:
            continue
        for entry in entries:
            try:
                lines = entry.read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                name, _, value = line.partition(":")
                if name in NEXT_ID and int(value) > 0:
                    found.add((name, int(value)))
    return found


def strangers() -> Iterator[int]:
    """Yield the processes that no test of this session has started."""
    mark = os.environ[MARK]
    for path in processes():
        if int(path.name) != os.getpid() and not carries(path, mark):
            yield int(path.name)


@contextmanager
def nothing_new_remains() -> Iterator[None]:
    """Fail if there are more objects on this machine after the block than before it, whosever.

    By their ids, for a count is equal also if one has gone and another has come. The block ends
    all that it starts: what comes later, or is held by a process of somebody else, is not its own.
    """
    before = all_objects()
    yield
    for listed in (all_objects, objects_by_bpftool):
        _wait_until_as_before(listed, before)


def _wait_until_as_before(listed: Callable[[], Objects], before: Objects) -> None:
    end = time.monotonic() + GONE_SECONDS * time_factor()
    new = listed() - before
    while new:
        assert time.monotonic() < end, f"new by {listed.__name__}: {sorted(new)}"
        time.sleep(0.05)
        theirs = held_objects(strangers()) - before
        new = (new & listed()) - theirs
        if theirs:
            # Their programs keep maps that no descriptor tells of.
            new = {(kind, number) for kind, number in new if kind != "map_id"}


def wait_until_gone(objects: Objects) -> None:
    """Fail if the kernel still has one of them after a while: it frees after a grace period."""
    end = time.monotonic() + GONE_SECONDS * time_factor()
    while left := objects & all_objects():
        assert time.monotonic() < end, f"still there: {sorted(left)}"
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started, as far as they are still its descendants."""
    found = [pid]
    for parent in found:
        for thread in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in thread.read_text().split()]
            except OSError:
                continue
    return found
