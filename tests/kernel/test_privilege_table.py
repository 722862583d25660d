"""The table of docs/privileges.md: each feature tried with capabilities removed one by one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.interpreters import (
    AS_NOBODY,
    NOBODY,
    an_open_interpreter,
    open_interpreter,
    shared_path,
)
from harness.tiers import Require
from kerneltrace_core.kernel.capabilities import read_capabilities

pytestmark = [pytest.mark.kernel, pytest.mark.any_kernel, pytest.mark.deadline(300)]

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "privileges.md"
BEGIN = "<!-- begin: made by tests/kernel/test_privilege_table.py -->\n"
END = "<!-- end -->\n"

# The mightiest first: what can be done without it is not said to need it.
CAPABILITIES = (
    *("sys_admin", "net_admin", "sys_resource", "sys_ptrace", "syslog"),
    *("setuid", "setgid", "perfmon", "bpf"),
)

GROUP = """
from kerneltrace_core.requests.kernel_side import KernelSide
side = KernelSide.open(("{group}",))
assert "{group}" in side.plan.groups
side.register(0)
side.leave()
side.close()
"""
PINS = """
from kerneltrace_core.requests.sharing.pins import join_pinned, usable
assert usable()
join_pinned(("sched",), timed=True).close()
"""
PRELOAD = """
from kerneltrace_core.requests.preload import preload
assert preload(2, required=True)
"""
PROCFS = """
from kerneltrace_core.requests import RequestTracer, TracerOptions
tracer = RequestTracer(TracerOptions(backend="procfs", required=True))
tracer.start()
assert tracer.backend == "procfs"
tracer.stop()
"""
WHEN_READY = """
import os
from types import SimpleNamespace
from kerneltrace_asgi.gunicorn import when_ready
from kerneltrace_core.requests.sharing.inherited import inheritance
os.environ["KERNELTRACE_REQUIRED"] = "1"
when_ready(SimpleNamespace(cfg=SimpleNamespace(workers=2)))
assert inheritance() is not None
"""
GIVE_UP = """
from kerneltrace_core.kernel.capabilities import read_capabilities
from kerneltrace_core.requests import RequestTracer, TracerOptions
tracer = RequestTracer(TracerOptions(backend="bpf", required=True, drop_capabilities=True))
tracer.start()
assert not read_capabilities().permitted
tracer.stop()
"""
JOIN = """
import os
from kerneltrace_core.requests.sharing.handed import join_handed
side = join_handed(os.environ["KERNELTRACE_SOCKET"])
side.register(0)
side.leave()
side.close()
"""
RUN = f"""
import subprocess, sys
subprocess.run([sys.executable, "-m", "kerneltrace_core.cli", "run", "--required", "--",
                sys.executable, "-c", {JOIN!r}], check=True)
"""
RUN_AS = f"""
import subprocess, sys
joins = {JOIN!r} + "assert os.getresuid() == os.getresgid() == (65533,) * 3"
subprocess.run([sys.executable, "-m", "kerneltrace_core.cli", "run", "--required",
                "--user", "65533", "--", sys.executable, "-c", joins], check=True)
"""
FEATURES = {
    "group `sched` (always loaded)": GROUP.format(group="sched"),
    "group `syscalls`": GROUP.format(group="syscalls"),
    "group `block`": GROUP.format(group="block"),
    "group `net`": GROUP.format(group="net"),
    "group `faults`": GROUP.format(group="faults"),
    "share by pins": PINS,
    "`kerneltrace run`: load for others": RUN,
    "`kerneltrace run --user`: and become another user": RUN_AS,
    "`preload`: load for children": PRELOAD,
    "gunicorn's `when_ready`, in its master": WHEN_READY,
    "a worker that joins what was loaded for it": JOIN,
    "`drop_capabilities=True`: until tracing has started": GIVE_UP,
    '`backend="procfs"`': PROCFS,
}


@contextmanager
def loaded_by_root() -> Iterator[str]:
    """Have root's ``kerneltrace run`` serve uid 65534; yield the address of its socket."""
    serve = ("-m", "kerneltrace_core.cli", "run", "--required", "--user", str(NOBODY), "--")
    with subprocess.Popen(
        [str(open_interpreter()), *serve, "sh", "-c", 'echo "$KERNELTRACE_SOCKET"; read line'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        env={"PYTHONPATH": shared_path(), "PATH": os.environ["PATH"]},
        text=True,
    ) as running:
        assert running.stdout is not None
        # It ends when its standard input does, at the end of the block.
        yield running.stdout.readline().strip()


def works(script: str, capabilities: list[str], address: str) -> bool:
    """Tell whether a script ends well as uid 65534 with these capabilities."""
    given = ",".join(f"+{name}" for name in capabilities) or "-all"
    start = (
        *(*AS_NOBODY, f"--inh-caps=-all,{given}", f"--bounding-set=-all,{given}"),
        *((f"--ambient-caps=-all,{given}",) if capabilities else ()),
        *(str(open_interpreter()), "-c", script),
    )
    env = {"PYTHONPATH": shared_path()}
    if script == JOIN:
        env["KERNELTRACE_SOCKET"] = address
    done = subprocess.run(start, capture_output=True, check=False, cwd="/", env=env)
    return done.returncode == 0


def needed(script: str, address: str) -> list[str]:
    """Return capabilities of which none can be left out."""
    own = read_capabilities().permitted
    held = [name for name in CAPABILITIES if f"cap_{name}" in own]
    assert works(script, held, address), f"not even with all of them: {script}"
    for name in tuple(held):
        without = [other for other in held if other != name]
        if works(script, without, address):
            held = without
    return sorted(held)


def test_the_table_says_what_each_feature_needs_and_no_more(require: Require) -> None:
    require("capability:cap_setuid", "an interpreter for uid 65534", probe=an_open_interpreter)
    require("tracepoint:page_fault_user", "bpffs")

    with loaded_by_root() as address:
        rows = {feature: needed(script, address) for feature, script in FEATURES.items()}

    table = ["| feature | capabilities that it needs |", "|---|---|"]
    for feature, names in rows.items():
        told = ", ".join(f"`CAP_{name.upper()}`" for name in names) or "none"
        table.append(f"| {feature} | {told} |")
    made = "\n".join(table) + "\n"
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    recorded, after = rest.split(END)
    if os.environ.get("KERNELTRACE_RECORD"):
        PAGE.write_text(before + BEGIN + made + END + after)
        return
    assert made == recorded
