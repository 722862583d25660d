#!/usr/bin/env python3
"""Run the kernel tier once for each set of privileges on the kernel that runs now.

usage: runs.py [--run NAME]... --results FOLDER [--select MARKS] [-- PYTEST_ARGUMENT...]

root        as root, kernel.perf_event_paranoid as it is
root-2      as root at kernel.perf_event_paranoid 2, the tests that give up root, by their names
nobody-2    as uid 65534 with CAP_BPF and CAP_PERFMON alone at kernel.perf_event_paranoid 2
nobody-3    the same at 3 and with 64 KiB of RLIMIT_MEMLOCK, the tests marked `unprivileged`

Each run leaves FOLDER/NAME.xml (JUnit). The sysctl is changed only in a guest; elsewhere a run for
another value than the present one is left out. Exit status 0 if all runs passed. Needs root, and a
mount namespace of its own where it is not in a guest: there folders that only root may enter are
opened by an overlay that nobody else sees.
"""

from __future__ import annotations

import argparse
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
NOBODY = 65534
MEMLOCK_BYTES = 64 * 1024
ROOT_RUN = "root"
NOBODY_RUN, SMALL_RUN = "nobody-2", "nobody-3"
RUNS = (ROOT_RUN, SMALL_RUN, "root-2", NOBODY_RUN)
# In the names of the tests that are root only until they have become uid 65534.
GIVING_UP_ROOT = ("test_nobody", "for_nobody", "two_capabilities", "bpf_and_perfmon")
# pytest's exit status when the selection is empty.
NONE_SELECTED = 5


def paranoid_of(run: str) -> int | None:
    """Return the perf_event_paranoid that a run wants; None if it takes what is there."""
    return None if run == ROOT_RUN else int(run.rpartition("-")[2])


def prefix_of(run: str, *, in_guest: bool) -> list[str]:
    """Return the command that gives a run its privileges."""
    if not run.startswith("nobody-"):
        return []
    # As much as there is: only a guest's root may raise it, and only there it can count.
    memlock = MEMLOCK_BYTES if run == SMALL_RUN else "unlimited" if in_guest else ""
    return [
        *(("prlimit", f"--memlock={memlock}:{memlock}") if memlock else ()),
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("--inh-caps=+bpf,+perfmon", "--ambient-caps=+bpf,+perfmon"),
    ]


def selection_of(run: str, select: str, *, in_guest: bool) -> list[str]:
    """Return the options of pytest that choose a run's tests.

    What a test marked `any_kernel` shows does not depend on the kernel: a guest, where it takes
    fifteen times as long, runs it only if the selection names the mark.
    """
    if in_guest and "any_kernel" not in select:
        select = f"({select}) and not any_kernel"
    if run in (ROOT_RUN, NOBODY_RUN):
        return ["-m", select]
    if run.startswith("root-"):
        return ["-m", select, "-k", " or ".join(GIVING_UP_ROOT)]
    return ["-m", f"({select}) and unprivileged"]


def pytest_arguments(more: list[str]) -> list[str]:
    """Return pytest's arguments: the whole tier, unless modules of it are named."""
    named = any(argument.startswith("tests/") for argument in more)
    return more if named else ["tests/kernel", *more]


def closed_folders(path: Path) -> list[Path]:
    """Return the folders on the way to a path that not everybody may enter, outermost first."""
    return [
        folder
        for folder in reversed(path.parents)
        if not stat.S_IMODE(folder.stat().st_mode) & stat.S_IXOTH
    ]


def open_folder(folder: Path) -> None:
    """Let everybody enter a folder, as far as this guest or mount namespace is concerned."""
    if "RUN_IN_KERNEL" not in os.environ:
        layers = tempfile.mkdtemp(prefix="open-")
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", layers], check=True)
        upper, work = Path(layers, "upper"), Path(layers, "work")
        upper.mkdir()
        work.mkdir()
        options = f"lowerdir={folder},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", folder], check=True)
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IXOTH)


def prepare(run: str) -> str | None:
    """Make the machine fit for a run; return why it cannot be, None if it is."""
    wanted = paranoid_of(run)
    if wanted is None:
        return None
    in_guest = "RUN_IN_KERNEL" in os.environ
    present = int(PARANOID.read_text())
    if run.startswith("root-") and not in_guest:
        return "the first run has what this machine has"
    if present != wanted:
        if not in_guest:
            return f"kernel.perf_event_paranoid is {present}, and not this program's to change"
        PARANOID.write_text(str(wanted))
    if not run.startswith("nobody-"):
        return None
    for path in (Path(sys.executable), Path(sys.executable).resolve(), Path.cwd() / "tests"):
        for folder in closed_folders(path):
            open_folder(folder)
    # The work folder was entered before it was covered.
    os.chdir(Path.cwd())
    return None


def main() -> int:
    """Run the program; return its exit status."""
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(prog="runs.py")
    parser.add_argument("--run", action="append", choices=RUNS, metavar="NAME")
    parser.add_argument("--results", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--select", default="kernel", metavar="MARKS")
    options = parser.parse_args(sys.argv[1:split])
    more = sys.argv[split + 1 :]
    options.results.mkdir(parents=True, exist_ok=True)
    # The one that writes there may be uid 65534.
    options.results.chmod(0o1777)
    in_guest = "RUN_IN_KERNEL" in os.environ
    failed = False
    for run in options.run or RUNS:
        refused = prepare(run)
        if refused:
            print(f"== {run}: left out: {refused}", flush=True)
            continue
        print(f"== {run}, linux {os.uname().release}", flush=True)
        with tempfile.TemporaryDirectory(prefix="home-") as home:
            Path(home).chmod(0o1777)
            command = [*prefix_of(run, in_guest=in_guest), sys.executable, "-m", "pytest", "-q"]
            # The second: an import that takes as long as ten tests, where it is installed.
            command += ["-p", "no:cacheprovider", "-p", "no:faker"]
            command += selection_of(run, options.select, in_guest=in_guest)
            command += [f"--junitxml={options.results / run}.xml", *pytest_arguments(more)]
            done = subprocess.run(
                command,
                env={**os.environ, "HOME": home, "PYTHONDONTWRITEBYTECODE": "1"},
                check=False,
            )
        if done.returncode == NONE_SELECTED:
            print(f"== {run}: no test is selected", flush=True)
        failed |= done.returncode not in (0, NONE_SELECTED)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
