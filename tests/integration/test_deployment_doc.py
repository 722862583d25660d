"""The recipes of docs/deployment.md, executed as far as they can be without what they are for."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.containers import DENIED, READ_ONLY, can, filtered, libseccomp
from harness.interpreters import AS_NOBODY, an_open_interpreter, open_interpreter, shared_path
from harness.tiers import Require
from integration.served.servers import GUNICORN, Kind, started
from integration.shared.kinds import SITE
from integration.shared.traffic import Traffic, rows, wait_until_traced

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text()
WORKERS = 2


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


CONFIGURATIONS = [block for block in blocks("python") if "gunicorn.conf.py" in block]
UNITS = blocks("ini")


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_each_gunicorn_configuration_has_its_workers_join(number: int, open_tmp_path: Path) -> None:
    (open_tmp_path / "gunicorn.conf.py").write_text(CONFIGURATIONS[number])
    kind = Kind("gunicorn", f"{GUNICORN} --worker-class asgi --workers {WORKERS} {SITE}", WORKERS)

    with started(kind, open_tmp_path, ready="/health") as server:
        healths = wait_until_traced(server, WORKERS)

    assert {health["kernel_side"]["joined"] for health in healths.values()} == {"inherited"}


def command_of(unit: str) -> list[str]:
    """Return what a unit starts, with the programs and the site of these tests."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    words = shlex.split(parser["Service"]["ExecStart"])
    end = words.index("--")
    run, server = words[:end], words[end + 1 :]
    assert Path(run[0]).name == "kerneltrace"
    assert Path(server[0]).name == "gunicorn"
    options = ["nobody" if word == "www-data" else word for word in run[1:]]
    return [str(open_interpreter()), "-m", "kerneltrace_core.cli", *options, "--required", "--"]


JOINS = """
import json, os
from kerneltrace_core.requests import RequestTracer, TracerOptions
tracer = RequestTracer(TracerOptions(required=True))
tracer.start()
lines = dict(line.split(":") for line in open("/proc/self/status"))
# The bounding set gives nothing, and without CAP_SETPCAP stays as it was.
held = [lines[name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")]
joined = tracer.health()["kernel_side"]["joined"]
print(json.dumps([os.getuid(), joined, sum(int(mask, 16) for mask in held)]))
"""


@pytest.mark.parametrize("number", range(len(UNITS)))
def test_each_units_command_traces_with_the_privileges_that_it_gives(
    number: int, open_tmp_path: Path, require: Require
) -> None:
    require("an interpreter for uid 65534", probe=an_open_interpreter)
    unit = UNITS[number]
    prefix: tuple[str, ...] = ()
    if "User=" in unit:
        two = "+bpf,+perfmon"
        assert "AmbientCapabilities=CAP_BPF CAP_PERFMON" in unit
        privileges = (f"--inh-caps={two}", f"--ambient-caps={two}", f"--bounding-set=-all,{two}")
        prefix = (*AS_NOBODY, *privileges, "--no-new-privs")
    done = subprocess.run(
        [*prefix, *command_of(unit), str(open_interpreter()), "-c", JOINS],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PYTHONPATH": shared_path(), "RUNTIME_DIRECTORY": str(open_tmp_path)},
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [65534, "socket", 0]


# What Docker gives to a container that runs as root, by its documentation.
DOCKERS = """
AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID
SETPCAP SETUID SYS_CHROOT
"""
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--mount", "--ipc", "--uts", "--cgroup")
READ_ONLY_CONTAINER = (*CONTAINER, "--", "sh", "-c", READ_ONLY, "sh")


def words_after(key: str, text: str) -> list[str]:
    """Return the list, in JSON, that comes after a key."""
    found = re.search(rf"^\s*{key}:? (\[.*\])$", text, re.MULTILINE)
    assert found, key
    words: list[str] = json.loads(found[1])
    return words


def docker() -> tuple[list[str], list[str], list[str]]:
    (file,) = blocks("dockerfile")
    (line,) = [
        line for block in blocks("console") for line in block.splitlines() if "docker" in line
    ]
    given = DOCKERS.split() + re.findall(r"--cap-add (\w+)", line)
    return words_after("ENTRYPOINT", file), words_after("CMD", file), given


def kubernetes() -> tuple[list[str], list[str], list[str]]:
    (manifest,) = blocks("yaml")
    assert words_after("drop", manifest) == ["ALL"]
    assert "runAsUser: 0\n" in manifest
    assert "readOnlyRootFilesystem: true\n" in manifest
    return (
        words_after("command", manifest),
        words_after("args", manifest),
        words_after("add", manifest),
    )


@pytest.mark.parametrize("recipe", [docker, kubernetes])
def test_each_containers_entry_point_traces_with_the_capabilities_that_it_is_given(
    recipe: Callable[[], tuple[list[str], list[str], list[str]]], require: Require
) -> None:
    require("an interpreter for uid 65534", probe=an_open_interpreter)
    require("libseccomp", probe=libseccomp)
    require("namespaces of a container", probe=lambda: can(*READ_ONLY_CONTAINER))
    entry, arguments, capabilities = recipe()
    assert entry == ["kerneltrace", "run", "--user", "www-data", "--"]
    assert arguments[-1] == "shop.asgi:application"
    given = ",".join(f"+{name.lower()}" for name in capabilities)
    interpreter = str(open_interpreter())

    done = subprocess.run(
        [
            *READ_ONLY_CONTAINER,
            *filtered(DENIED),
            *("setpriv", "--inh-caps=-all", f"--bounding-set=-all,{given}", "--"),
            *(interpreter, "-m", "kerneltrace_core.cli", "run", "--required", "--user", "nobody"),
            *("--", interpreter, "-c", JOINS),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PYTHONPATH": shared_path(), "PATH": os.environ["PATH"]},
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [65534, "socket", 0]


def test_the_command_of_the_page_serves_exactly(open_tmp_path: Path) -> None:
    (line,) = [line for line in blocks("console")[0].splitlines() if "kerneltrace run" in line]
    words = shlex.split(line.removeprefix("$ "))
    assert words[:5] == ["kerneltrace", "run", "--user", "www-data", "--"]
    assert words[5:] == ["uvicorn", "--workers", "4", "shop.asgi:application"]
    before = (sys.executable, "-m", "kerneltrace_core.cli", "run", "--required", "--")
    kind = Kind("uvicorn", f"--port {{port}} --log-level warning --workers 4 {SITE}", 4)

    with started(kind, open_tmp_path, ready="/health", before=before) as server:
        healths = wait_until_traced(server, 4)
        traffic = Traffic(server, 5)
        for _ in range(20):
            traffic.one()

    assert {health["kernel_side"]["joined"] for health in healths.values()} == {"socket"}
    counted = rows(open_tmp_path, "counted")
    assert [row for row in counted if row["counted"] not in (None, row["done"])] == []


CELERY = next(block for block in blocks("python") if "celery" in block)
RUN_COMMAND = (sys.executable, "-m", "kerneltrace_core.cli", "run", "--required", "--")


@pytest.mark.parametrize(
    ("block", "before", "joined"),
    [(CELERY, (), "inherited"), ("", (), "pins"), ("", RUN_COMMAND, "socket")],
    ids=["preload", "alone", "run"],
)
def test_the_processes_of_celerys_pool_share_and_count_exactly_also_when_replaced(
    block: str, before: tuple[str, ...], joined: str, open_tmp_path: Path
) -> None:
    report = open_tmp_path / "tasks.jsonl"
    (open_tmp_path / "load_once.py").write_text(block)

    done = subprocess.run(
        [*before, sys.executable, "-m", "integration.shared.celery_app", "30"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=100,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                (str(ROOT / "tests"), str(ROOT / "src"), str(open_tmp_path))
            ),
            "REPORT": str(report),
        },
    )

    assert done.returncode == 0, done.stderr
    noted = [json.loads(line) for line in report.read_text().splitlines()]
    assert len(noted) == 30
    assert [row for row in noted if row["counted"] != row["done"]] == []
    assert {row["joined"] for row in noted} == {joined}
    assert len({row["pid"] for row in noted}) > 3
