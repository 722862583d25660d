#!/usr/bin/env python3
"""Run README's two commands on a bare Debian, then install the source distribution there.

usage: run_fresh.py [--suite SUITE] [--python VERSION] [-- PYTEST_ARGUMENT...]

The tree is a clone of this one's last commit. The arguments go to pytest by `make test ARGS=...`;
without them the whole suite runs. With --python the commands are others: that interpreter of the
suite runs the unit and the kernel tier. Exit status 0 if every command ended well and the demo
traced. Needs root, debootstrap and the network.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from debian_root import Machine, ask, debian_root

TREE = Path(__file__).resolve().parents[2]
# Where uid 65534 may read it: some tests give up root.
HOME = "/srv/kerneltrace"
# What README asks for, and Python.
PACKAGES = ("ca-certificates", "make", "python3")
# An sdist of that tree, in an environment that has seen nothing else, built as a user's pip does.
SDIST = (
    ".venv/bin/python setup.py -q sdist --dist-dir /root/dist",
    "python3 -m venv /root/venv && /root/venv/bin/pip install -qq /root/dist/kerneltrace-*.tar.gz",
    "cd / && /root/venv/bin/python -m kerneltrace_core.doctor",
)
_NAMESPACE_MARK = "KERNELTRACE_FRESH_NAMESPACE"


def cache_folder() -> Path:
    """Return the folder in which downloads are kept."""
    own = os.environ.get("KERNELTRACE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(home) / "kerneltrace"


def packages_of(python: str | None) -> tuple[str, ...]:
    """Return the packages of an interpreter that is not the suite's default."""
    return (f"python{python}", f"python{python}-dev", f"python{python}-venv") if python else ()


def commands_of(python: str | None, more: str) -> list[str]:
    """Return what is to be run in the tree."""
    arguments = f" ARGS={shlex.quote(more)}" if more else ""
    if python is None:
        return ["make demo", f"make test{arguments}", *SDIST]
    chosen = f"PYTHON=/usr/bin/python{python}{arguments}"
    return [f"make test-unit {chosen}", f"make test-kernel {chosen}"]


def what_went_wrong(command: str, status: int, output: str) -> str | None:
    """Return why a command did not do what README promises, None if it did."""
    if status:
        return f"exit status {status}"
    if command == "make demo" and "attribution exact" not in output:
        return "the demo did not trace"
    if command.startswith("make test") and " passed" not in output.splitlines()[-1]:
        return "pytest's closing line is not the last one"
    return None


def enter_private_namespace() -> None:
    """Start this program anew where its mounts are its own; return in the new one."""
    if os.environ.pop(_NAMESPACE_MARK, None):
        return
    if os.geteuid() != 0:
        raise SystemExit("run_fresh: not root (run it with sudo)")
    os.environ[_NAMESPACE_MARK] = "1"
    unshare = ["unshare", "--mount", "--ipc", "--propagation", "private"]
    os.execvp("unshare", [*unshare, sys.executable, *sys.orig_argv[1:]])


def run_all(fresh: Machine, commands: list[str]) -> bool:
    """Run the commands one after the other, up to the first that fails."""
    for command in commands:
        print(f"\n== fresh: {command}", flush=True)
        begun = time.monotonic()
        done = fresh.run(command, HOME)
        wrong = what_went_wrong(command, done.returncode, done.stdout)
        print(
            f"== fresh: {command}: {wrong or 'ok'} after {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        if wrong:
            return False
    return True


def main() -> int:
    """Run the program; return its exit status."""
    own, _, more = " ".join(sys.argv[1:]).partition("-- ")
    parser = argparse.ArgumentParser(prog="run_fresh.py")
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--python", metavar="VERSION")
    options = parser.parse_args(shlex.split(own.removesuffix("--")))
    enter_private_namespace()
    cache = cache_folder() / "debootstrap"
    # Not under /tmp: many a /tmp is mounted without devices or in memory.
    with tempfile.TemporaryDirectory(prefix="fresh-", dir=cache_folder()) as work:
        print(f"== fresh: debootstrap {options.suite}", flush=True)
        packages = (*PACKAGES, *packages_of(options.python))
        with debian_root(options.suite, Path(work), cache / options.suite, packages) as fresh:
            subprocess.run(
                ["git", "clone", "-q", "--no-local", TREE, fresh.root / HOME.lstrip("/")],
                check=True,
            )
            commit = ask("git", "-C", str(TREE), "log", "-1", "--format=%h %s").strip()
            print(f"== fresh: {commit}", flush=True)
            return 0 if run_all(fresh, commands_of(options.python, more)) else 1


if __name__ == "__main__":
    sys.exit(main())
