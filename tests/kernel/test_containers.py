"""In namespaces, read-only roots, control groups, seccomp filters: exact, or told why not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.containers import DENIED, READ_ONLY, can, filtered, libseccomp
from harness.tiers import Require
from kerneltrace_core.kernel.support import Support
from traced import run_python

pytestmark = [pytest.mark.kernel, pytest.mark.needs("thread_registration", "task_storage")]

SCRIPT = """
import json, logging, os, sys
from kerneltrace_core.requests import RequestTracer, TracerOptions
from traced import calls_of, in_thread, on_loop

lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
handler.setLevel(logging.WARNING)
logging.getLogger("kerneltrace").addHandler(handler)
tracer = RequestTracer.shared(TracerOptions())
tracer.start()

def call():
    for _ in range(40):
        os.getppid()

counts = [calls_of(serve(tracer, call)).get("getppid") for serve in (on_loop, in_thread)]
health = tracer.health()
tracer.stop()
print(json.dumps({
    "pid": os.getpid(), "backend": health["backend"], "counts": counts, "warned": lines,
    "joined": health["kernel_side"].get("joined"),
    "groups": open("/proc/self/cgroup").read().splitlines(),
    "address": os.environ.get("KERNELTRACE_SOCKET", ""),
    "writable": [path for path in json.loads(os.environ["CLAIMED_READ_ONLY"])
                 if not os.statvfs(path).f_flag & os.ST_RDONLY],
}))
"""
UNDER_RUN = """
import sys
from kerneltrace_core.cli.__main__ import main
sys.exit(main(["run", "--required", "--processes", "2", "--", sys.executable, "-c", sys.argv[1]]))
"""
CLAIMED_READ_ONLY = ["/", "/tmp", "/run", "/dev/shm", "/var/tmp"]
EXACT = {"backend": "bpf", "counts": [40, 40], "warned": []}

NAMESPACES = {
    "pid": ("unshare", "--pid", "--fork", "--mount-proc", "--"),
    "net": ("unshare", "--net", "--"),
    "ipc and uts": ("unshare", "--ipc", "--uts", "--"),
    "cgroup": ("unshare", "--cgroup", "--"),
    "read-only": ("unshare", "--mount", "--", "sh", "-c", READ_ONLY, "sh"),
    "all": (
        *("unshare", "--pid", "--fork", "--mount-proc", "--net", "--ipc", "--uts", "--cgroup"),
        *("--mount", "--", "sh", "-c", READ_ONLY, "sh"),
    ),
}


def traced(*before: str, script: str = SCRIPT, arguments: tuple[str, ...] = ()) -> dict[str, Any]:
    environment = {n: t for n, t in os.environ.items() if not n.startswith("KERNELTRACE_S")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    environment["CLAIMED_READ_ONLY"] = json.dumps(CLAIMED_READ_ONLY)
    said = run_python(script, *arguments, before=before, env=environment)
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "name",
    [
        name if name == "all" else pytest.param(name, marks=pytest.mark.any_kernel)
        for name in NAMESPACES
    ],
)
def test_numbers_are_exact_inside_a_namespace(name: str, require: Require) -> None:
    require(f"namespace {name}", probe=lambda: can(*NAMESPACES[name]))

    found = traced(*NAMESPACES[name])

    assert {key: found[key] for key in EXACT} == EXACT
    assert (found["pid"] == 1) == (name in ("pid", "all"))
    assert (found["writable"] == []) == (name in ("read-only", "all"))


@pytest.mark.parametrize("name", ["pid", "read-only", "all"])
@pytest.mark.any_kernel
def test_a_container_whose_entry_point_is_run_needs_no_capability_in_the_server(
    name: str, require: Require
) -> None:
    require(f"namespace {name}", probe=lambda: can(*NAMESPACES[name]))

    found = traced(*NAMESPACES[name], script=UNDER_RUN, arguments=(SCRIPT,))

    assert {key: found[key] for key in EXACT} == EXACT
    assert found["joined"] == "socket"
    # Where no folder can be written to the socket has a name that is none of the file system.
    assert (found["writable"] == []) == (name != "pid")
    assert found["address"].startswith("/" if name == "pid" else "@")


def test_a_user_namespace_is_named_as_the_cause(require: Require) -> None:
    prefix = ("unshare", "--user", "--map-root-user", "--")
    require("a user namespace", probe=lambda: can(*prefix))

    found = traced(*prefix)

    assert found["backend"] == "procfs"
    assert len(found["warned"]) == 1
    assert "of a user namespace and do not count" in found["warned"][0]


# ---- control groups ------------------------------------------------------------------------------

CGROUPS = {
    "v2": ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"),
    "v1": ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/systemd"),
}


def hierarchy(version: str) -> Path | None:
    for candidate in map(Path, CGROUPS[version]):
        if (candidate / "cgroup.procs").exists():
            unified = (candidate / "cgroup.controllers").exists()
            if unified == (version == "v2"):
                return candidate
    return None


@contextmanager
def a_group(version: str, require: Require) -> Iterator[Path]:
    """Make a control group of a version, which is to be empty again at the end of the block."""
    root = hierarchy(version)

    def probe() -> Support:
        if root is None or not os.access(root, os.W_OK):
            return Support.no(f"no cgroup {version} hierarchy to write to")
        return Support.yes()

    require(f"cgroup {version}", probe=probe)
    assert root is not None
    folder = root / f"kerneltrace-test-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        folder.rmdir()


@pytest.fixture
def cgroup(request: pytest.FixtureRequest, require: Require) -> Iterator[Path]:
    """Make a control group of the version asked for."""
    with a_group(request.param, require) as folder:
        yield folder


@pytest.mark.parametrize(
    "cgroup", [pytest.param("v1", marks=pytest.mark.any_kernel), "v2"], indirect=True
)
def test_numbers_are_exact_in_a_control_group(cgroup: Path) -> None:
    join = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'

    found = traced("sh", "-c", join, "sh")

    assert {key: found[key] for key in EXACT} == EXACT
    assert any(line.endswith(f"/{cgroup.name}") for line in found["groups"])


def test_numbers_are_exact_in_groups_of_both_versions_at_once_where_the_host_is_hybrid(
    require: Require,
) -> None:
    with a_group("v1", require) as older, a_group("v2", require) as newer:
        join = f'echo $$ > {older}/cgroup.procs && echo $$ > {newer}/cgroup.procs && exec "$@"'

        found = traced("sh", "-c", join, "sh")

    assert {key: found[key] for key in EXACT} == EXACT
    # The one hierarchy of version 2 has number 0.
    joined = [line for line in found["groups"] if line.endswith(f"/{newer.name}")]
    assert sorted(line.startswith("0::") for line in joined) == [False, True]


# ---- seccomp -------------------------------------------------------------------------------------


@pytest.mark.any_kernel
def test_dockers_default_filter_with_both_capabilities_added_changes_nothing(
    require: Require,
) -> None:
    require("libseccomp", probe=libseccomp)

    found = traced(*filtered(DENIED))

    assert {key: found[key] for key in EXACT} == EXACT
    assert found["joined"] == "own"


@pytest.mark.any_kernel
def test_dockers_default_filter_without_them_is_suspected(require: Require) -> None:
    require("libseccomp", probe=libseccomp)

    found = traced(*filtered(DENIED + " bpf perf_event_open"))

    assert found["backend"] == "procfs"
    assert len(found["warned"]) == 1
    assert "a seccomp filter is on" in found["warned"][0]


@pytest.mark.any_kernel
def test_run_works_under_dockers_default_filter(require: Require) -> None:
    require("libseccomp", probe=libseccomp)

    found = traced(*filtered(DENIED), script=UNDER_RUN, arguments=(SCRIPT,))

    assert {key: found[key] for key in EXACT} == EXACT
    assert found["joined"] == "socket"
