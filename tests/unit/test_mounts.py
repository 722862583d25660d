"""What the kernel's tests need mounted is mounted for their session alone, or its probe says no."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.mounts import Mount, bpffs_to_write, may_run, missing, tracefs_to_read
from kerneltrace_core.kernel.support import Support

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "may"),
    [
        (["tests"], True),
        (["."], True),
        (["tests/unit", "tests/kernel"], True),
        (["tests/integration/truth"], True),
        (["tests/kernel/test_a.py::test_b[tests/unit]"], True),
        (["tests/unit"], False),
        (["tests/unit", "tests/kernels"], False),
        (["tests/unit/test_a.py::test_b[tests/kernel]"], False),
        (["examples"], False),
        ([], False),
    ],
)
def test_arguments_tell_whether_tests_may_meet_the_kernel(
    arguments: list[str], may: bool, tmp_path: Path
) -> None:
    assert may_run(arguments, tmp_path, tmp_path) is may


def test_arguments_are_understood_from_where_pytest_was_started(tmp_path: Path) -> None:
    assert may_run(["kernel"], tmp_path / "tests", tmp_path)
    assert may_run([str(tmp_path / "tests/kernel/test_a.py")], Path("/"), tmp_path)
    assert not may_run(["kernel"], tmp_path, tmp_path)


def test_what_is_mounted_is_left_as_it_is(tmp_path: Path) -> None:
    root, folder = Mount("any", "/"), Mount("any", str(tmp_path))
    nowhere = Mount("any", str(tmp_path / "none"))

    assert missing([root, folder, nowhere]) == [folder, nowhere]


MOUNTING = """
import json, os, sys
from harness.mounts import Mount, mount_here_alone
place = sys.argv[1]
told = mount_here_alone([Mount("no_such_kind", place), Mount("tmpfs", place)])
print(json.dumps([told, os.path.ismount(place)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
def test_mounts_are_this_sessions_alone_and_one_that_fails_is_told(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", MOUNTING, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    told, seen_inside = json.loads(child.stdout)
    assert not os.path.ismount(tmp_path)
    if told[0].startswith("not mounted: unshare"):
        assert told == ["not mounted: unshare the mount namespace: Operation not permitted"]
        pytest.skip(told[0])
    assert told == [
        f"not mounted: no_such_kind at {tmp_path}: No such device",
        f"mounted for this session alone: tmpfs at {tmp_path}",
    ]
    assert seen_inside


def test_without_a_mount_the_probes_say_no(tmp_path: Path) -> None:
    assert tracefs_to_read((str(tmp_path),)) == Support.no("tracefs is not mounted")
    assert bpffs_to_write(str(tmp_path)) == Support.no("no bpffs to write to")

    (tmp_path / "events").mkdir()
    told = tracefs_to_read((str(tmp_path),))
    assert told == Support.no(f"{tmp_path}/trace_pipe cannot be read")

    (tmp_path / "trace_pipe").touch()
    assert tracefs_to_read((str(tmp_path),)) == Support.yes()
