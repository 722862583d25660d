#!/usr/bin/env python3
"""Run the kernel tier on several kernels and tell what works where.

usage: matrix.py [--select MARKS] [--timeout SECONDS] [--results FOLDER] [--run NAME]...
                 [--jobs N] [--document FILE] KERNEL... [-- PYTEST_ARGUMENT...]

KERNEL is a suite of Debian, whose kernel runs as an emulated guest, or "host", the one that runs
now. There is one guest for each kernel, N of them at a time (then each is told when it has ended),
the host after them by itself; the runs in it are those of runs.py. The results are
JUnit files in FOLDER/RELEASE; the tables that report.py makes of them are printed, and written to
FILE if one is given and the whole tier ran. Exit status 0 if nothing failed. Needs root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import HOST, missing_runs, read_results, render, render_text, shortcomings
from run_in_kernel import cache_folder
from runs import RUNS

HERE = Path(__file__).resolve().parent
# Sharing a folder with a guest does not carry the tests' modules: they are in the work tree.
PASSED_ON = ("PYTHONDONTWRITEBYTECODE",)


def release_of(kernel: str) -> str:
    """Return the release of a fetched suite, or of the running kernel."""
    if kernel == HOST:
        return os.uname().release
    return (cache_folder() / "kernels" / f".{kernel}").read_text().strip()


def compile_outside() -> None:
    """Compile here what a guest would take fifteen times as long for: Python and BPF programs."""
    environment = {n: t for n, t in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
    for command in (
        ("compileall", "-q", "src", "tests"),
        # Modules of tests compile their BPF programs when they are imported; pytest keeps its own
        # bytecode of them.
        ("pytest", "-qq", "--collect-only", "-p", "no:cacheprovider", "tests/kernel"),
    ):
        subprocess.run(
            [sys.executable, "-m", *command],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )


def folder_of(kernel: str, results: Path) -> Path:
    """Return the folder of a kernel's results."""
    release = release_of(kernel)
    return results / (f"{HOST}-{release}" if kernel == HOST else release)


def run_kernel(
    kernel: str, options: argparse.Namespace, more: list[str], *, at_once: bool
) -> str | None:
    """Run the tier on one kernel; return the kernel's name if it failed.

    What it prints passes through, or comes at its end.
    """
    folder = folder_of(kernel, options.results)
    head = f"\n=== {kernel}: linux {release_of(kernel)}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, str(HERE / "runs.py"), "--results", str(folder.resolve())]
    command += ["--select", options.select, *(f"--run={name}" for name in options.run or RUNS)]
    command += ["--", *more] if more else []
    if kernel == HOST:
        inside = ["unshare", "--mount", "--propagation", "private", *command]
    else:
        inside = [sys.executable, str(HERE / "run_in_kernel.py")]
        inside += ["--timeout", str(options.timeout), "--rw", str(folder.resolve())]
        inside += [f"--env={name}" for name in PASSED_ON]
        inside += [release_of(kernel), "--", *command]
    if at_once:
        print(head, flush=True)
        return kernel if subprocess.run(inside, check=False).returncode else None
    done = subprocess.run(
        inside,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    print(f"{head}\n{done.stdout}", flush=True)
    return kernel if done.returncode else None


def main() -> int:
    """Run the program; return its exit status."""
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(prog="matrix.py")
    parser.add_argument("--select", default="kernel", metavar="MARKS")
    parser.add_argument("--timeout", type=float, default=1800, metavar="SECONDS")
    parser.add_argument("--results", type=Path, default=Path("build/kernels"), metavar="FOLDER")
    parser.add_argument("--run", action="append", choices=RUNS, metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    parser.add_argument("--document", type=Path, metavar="FILE")
    parser.add_argument("kernels", nargs="+", metavar="KERNEL")
    options = parser.parse_args(sys.argv[1:split])
    more = sys.argv[split + 1 :]
    compile_outside()
    guests = [kernel for kernel in options.kernels if kernel != HOST]
    with ThreadPoolExecutor(options.jobs) as pool:
        ended = pool.map(
            lambda kernel: run_kernel(kernel, options, more, at_once=options.jobs == 1), guests
        )
        failed = [kernel for kernel in ended if kernel]
    if HOST in options.kernels and run_kernel(HOST, options, more, at_once=True):
        failed.append(HOST)
    # Not what an earlier run left of other kernels.
    ran = [folder_of(kernel, options.results).name for kernel in options.kernels]
    results = read_results(options.results, ran)
    print(f"\n{render_text(results)}", flush=True)
    if options.document:
        holes = missing_runs(results, ran)
        if more or holes:
            # Not over a page that tells of the whole tier.
            print(f"matrix: {options.document} is as it was: this was only a part of it")
        else:
            options.document.write_text(render(results))
        failed += [*holes, *shortcomings(results)]
    for cause in failed:
        print(f"matrix: failed: {cause}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
