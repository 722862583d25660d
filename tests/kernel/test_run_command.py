"""``kerneltrace run`` becomes its command: status, signals and streams are the command's own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from broker_scripts import BEGIN
from harness.bpf_objects import held_objects, wait_until_gone
from harness.interpreters import (
    AS_NOBODY,
    NOBODY,
    an_open_interpreter,
    open_interpreter,
    shared_path,
)
from harness.pace import stretched
from harness.tiers import Require

pytestmark = [pytest.mark.kernel, pytest.mark.needs("thread_registration", "task_storage")]

RUN = ("-m", "kerneltrace_core.cli", "run")


def environment(**more: str) -> dict[str, str]:
    ours = {name: text for name, text in os.environ.items() if not name.startswith("KERNELTRACE_")}
    session = {n: t for n, t in os.environ.items() if n == "KERNELTRACE_TEST_SESSION"}
    return {**ours, **session, "PYTHONPATH": shared_path(), **more}


def start(*arguments: str, before: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
    variables = options.pop("variables", {})
    return subprocess.Popen(
        [*before, open_interpreter() or sys.executable, *RUN, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
        **options,
    )


def run(*arguments: str, text: str = "", **options: Any) -> tuple[int, str, str]:
    process = start(*arguments, **options)
    out, err = process.communicate(text, timeout=50)
    return process.returncode, out, err


def sh(script: str) -> tuple[str, ...]:
    return ("--required", "--processes", "1", "--", "sh", "-c", script)


def helpers() -> set[int]:
    """Return the pids of the helpers that run now."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text() == "kerneltrace-run\n":
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def helper_of() -> Any:
    """Return a function that finds the helper of a command by the socket in its environment."""

    def find(address: str) -> int:
        code = "import sys; from kerneltrace_core.requests.sharing.handed import status; "
        code += "print(status(sys.argv[1])['pid'])"
        done = subprocess.run(
            [sys.executable, "-c", code, address],
            capture_output=True,
            text=True,
            check=True,
            env=environment(),
        )
        return int(done.stdout)

    return find


@pytest.mark.any_kernel
def test_the_exit_status_is_the_commands() -> None:
    assert [run(*sh(f"exit {number}"))[0] for number in (0, 1, 42, 255)] == [0, 1, 42, 255]


@pytest.mark.any_kernel
def test_standard_streams_are_the_commands_and_end_with_it() -> None:
    status, out, err = run(*sh("cat; echo told >&2"), text="spoken\n")

    assert (status, out, err) == (0, "spoken\n", "told\n")


@pytest.mark.any_kernel
def test_the_command_has_the_pid_that_was_started_and_no_child_that_it_did_not_start() -> None:
    process = start(*sh("cat /proc/$$/task/*/children; echo; echo $$"))

    out, _ = process.communicate(timeout=50)

    # cat itself is one.
    children, own = out.split("\n")[:2]
    assert len(children.split()) <= 1
    assert int(own) == process.pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGUSR1])
@pytest.mark.any_kernel
def test_a_signal_ends_the_command_as_if_it_had_been_started_directly(number: int) -> None:
    process = start(*sh("echo ready; exec sleep 60"))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    process.send_signal(number)

    assert process.wait(20) == -number
    process.communicate()


@pytest.mark.any_kernel
def test_a_broken_pipe_ends_the_command_as_anywhere() -> None:
    status, out, _ = run(*sh("(sleep 0.2; yes; echo $? >&2) | head -1; true"))
    ignored = run(*sh("grep SigIgn /proc/$$/status"))[1].split()[1]

    assert (status, out) == (0, "y\n")
    assert int(ignored, 16) & (1 << signal.SIGPIPE - 1) == 0


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (("--", "/no/such/command"), 127, "/no/such/command: no such command"),
        (("--", "/etc/passwd"), 126, "/etc/passwd: Permission denied"),
        (("--",), 125, "no command given"),
        ((), 125, "no command given"),
        (("--user", "nobody-like-that", "--", "true"), 125, "there is no such user"),
    ],
)
@pytest.mark.any_kernel
def test_what_cannot_be_executed_is_told_and_leaves_no_helper(
    command: tuple[str, ...], status: int, said: str
) -> None:
    found, _, err = run(*command)

    assert found == status
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.any_kernel
def test_it_is_off_when_the_environment_says_so() -> None:
    script = "echo [$KERNELTRACE_SOCKET]"

    assert run(*sh(script), variables={"KERNELTRACE_ENABLED": "0"})[1] == "[]\n"
    assert run(*sh(script), variables={"KERNELTRACE_BACKEND": "procfs"})[1] == "[]\n"
    assert run(*sh(script))[1] != "[]\n"


def test_without_privileges_the_command_runs_untraced_or_not_at_all(require: Require) -> None:
    require("an interpreter for uid 65534", probe=an_open_interpreter)
    nobody = (*AS_NOBODY, "--inh-caps=-all")

    ran = run("--", "echo", "ran", before=nobody, cwd="/")
    refused = run("--required", "--", "echo", "ran", before=nobody, cwd="/")

    assert ran[:2] == (0, "ran\n")
    assert "CAP_BPF" in ran[2]
    assert ran[2].endswith("; running without\n")
    assert refused[:2] == (125, "")
    assert "CAP_BPF" in refused[2]


def test_two_capabilities_are_enough_to_run_it(require: Require) -> None:
    require("an interpreter for uid 65534", probe=an_open_interpreter)
    two = "+bpf,+perfmon"
    with_two = (
        *AS_NOBODY,
        f"--inh-caps={two}",
        f"--ambient-caps={two}",
        f"--bounding-set=-all,{two}",
    )

    status, out, err = run(
        *(
            "--required",
            "--",
            open_interpreter() or sys.executable,
            "-c",
            BEGIN + "tell(uid=os.getuid(), n=joins())",
        ),
        before=with_two,
        cwd="/",
    )

    assert status == 0, err
    assert json.loads(out) == {"uid": NOBODY, "n": 100}


@pytest.mark.any_kernel
def test_another_user_is_become_whole_and_nothing_remains_of_the_socket(require: Require) -> None:
    require("capability:cap_setuid", "an interpreter for uid 65534", probe=an_open_interpreter)
    script = """
status = open("/proc/self/status").read().split("\\n")
ids = {line.split(":")[0]: line.split(":")[1].split() for line in status if ":" in line}
modes = [oct(os.stat(path).st_mode & 0o777) for path in (ADDRESS, os.path.dirname(ADDRESS))]
caps = [ids[name][0] for name in ids if "Cap" in name]
tell(uid=ids["Uid"], gid=ids["Gid"], groups=ids["Groups"], caps=caps, mode=modes,
     user=os.environ["USER"], n=joins(), socket=ADDRESS)
"""

    status, out, err = run(
        "--required",
        "--user",
        "nobody",
        "--",
        open_interpreter() or sys.executable,
        "-c",
        BEGIN + script,
        cwd="/",
    )

    assert status == 0, err
    found = json.loads(out)
    socket = Path(found.pop("socket"))
    assert {int(mask, 16) for mask in found.pop("caps")} == {0}
    assert set(found.pop("groups")) <= {"65534"}
    ids = [str(NOBODY)] * 4
    assert found == {
        "uid": ids, "gid": ids, "user": "nobody", "n": 100, "mode": ["0o600", "0o700"]
    }  # fmt: skip
    deadline = time.monotonic() + 20
    while socket.parent.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.any_kernel
def test_the_helper_ends_with_the_command_and_all_that_it_loaded_goes(helper_of: Any) -> None:
    process = start(*sh("echo $KERNELTRACE_SOCKET; read line"))
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    helper = helper_of(address)
    objects = held_objects([helper])
    process.communicate("go\n", timeout=20)

    deadline = time.monotonic() + 20
    while helper in helpers():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(objects) > 20
    wait_until_gone(objects)
    assert not Path(address).exists()


def status_of(pid: int) -> dict[str, list[str]]:
    """Return what /proc says of a process, by name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: line.split(":")[1].split() for line in lines}


@pytest.mark.parametrize("user", [None, "nobody"])
@pytest.mark.any_kernel
def test_the_helper_has_no_capability_and_is_the_user_that_the_command_is(
    user: str | None, helper_of: Any, require: Require
) -> None:
    require("capability:cap_setuid")
    uid = os.geteuid() if user is None else NOBODY
    asked = () if user is None else ("--user", user)
    process = start(*asked, *sh("echo $KERNELTRACE_SOCKET; read line"), cwd="/")
    assert process.stdout is not None

    status = status_of(helper_of(process.stdout.readline().strip()))
    process.communicate("go\n", timeout=50)

    capabilities = {name: status[name] for name in status if name.startswith("Cap")}
    assert set(capabilities) >= {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
    assert {int(mask, 16) for (mask,) in capabilities.values()} == {0}
    assert (status["Uid"], status["Gid"]) == ([str(uid)] * 4, [str(uid)] * 4)
    assert status["Name"] == ["kerneltrace-run"]


@pytest.mark.any_kernel
def test_the_helper_keeps_nothing_open_that_was_handed_to_the_command(helper_of: Any) -> None:
    closes = """
import os, sys
os.close(int(sys.argv[1]))
print(os.environ["KERNELTRACE_SOCKET"], flush=True)
sys.stdin.read()
"""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as reads:
        process = start(
            *("--required", "--", open_interpreter() or sys.executable, "-c", closes, str(writer)),
            pass_fds=(writer,),
        )
        os.close(writer)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        # The command has closed its end, and whoever reads sees that, though the command goes on.
        ended = select.select([reads], [], [], stretched(5))[0]
        helper = helper_of(address)
        links = [str(path.readlink()) for path in Path(f"/proc/{helper}/fd").iterdir()]
        process.communicate(timeout=50)

    assert ended == [reads]
    assert {link.partition(":")[0] for link in links} == {"/dev/null", "socket", "anon_inode"}


@pytest.mark.parametrize("closed", ["0>&-", "1>&- 2>&-", "0>&- 1>&- 2>&-"])
@pytest.mark.any_kernel
def test_standard_streams_that_are_closed_stay_so_and_the_helper_serves(
    closed: str, open_tmp_path: Path
) -> None:
    script = f"""
held = [fd for fd in range(3) if os.path.exists(f"/proc/self/fd/{{fd}}")]
sys.stdout = open("{open_tmp_path}/told", "w")
tell(n=joins(), held=held)
"""

    status, _, err = run(
        *("--required", "--", open_interpreter() or sys.executable, "-c", BEGIN + script),
        before=("sh", "-c", f'exec "$@" {closed}', "sh"),
    )

    assert (status, err) == (0, "")
    found = json.loads((open_tmp_path / "told").read_text())
    assert found == {"n": 100, "held": [fd for fd in range(3) if f"{fd}>" not in closed]}


@pytest.mark.any_kernel
def test_members_go_on_when_the_helper_is_killed_and_later_ones_do_without(helper_of: Any) -> None:
    script = """
mine = handed.join_handed(ADDRESS)
before = charged(mine)
print(ADDRESS, flush=True)
sys.stdin.readline()
after = charged(mine)
try:
    joins()
    error = ""
except OSError as refused:
    error = type(refused).__name__
tell(before=before, after=after, error=error)
"""
    process = start("--required", "--", open_interpreter() or sys.executable, "-c", BEGIN + script)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    os.kill(helper_of(address), signal.SIGKILL)
    time.sleep(0.2)

    out, err = process.communicate("go\n", timeout=30)

    assert json.loads(out) == {"before": 100, "after": 100, "error": "ConnectionRefusedError"}, err
    # Nobody is left who could have removed it but the next one.
    assert Path(address).exists()
    os.utime(Path(address).parent, (1, 1))
    assert run(*sh("true"))[0] == 0
    assert not Path(address).parent.exists()
