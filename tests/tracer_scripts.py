"""Scripts with a tracer, each run in a process of its own."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from traced import run_python

__all__ = ["HOLDERS", "TRACER", "run", "run_under"]

# What they begin with.
TRACER = """
import asyncio, json, logging, multiprocessing, os, signal, subprocess, sys, threading, time
from kerneltrace_core.requests import RequestTracer, TracerOptions
from kerneltrace_core.requests.preload import preload, reserve
from traced import AtOnce, calls_of, count_in_worker, in_thread, joined_in_worker, on_loop

class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []
    def emit(self, record):
        self.lines.append([record.levelname, record.getMessage()])

LINES = Lines()
logging.getLogger("kerneltrace").addHandler(LINES)
logging.getLogger("kerneltrace").setLevel(logging.INFO)

def start(**options):
    tracer = RequestTracer.shared(TracerOptions(**{"backend": "bpf", "required": True, **options}))
    tracer.start()
    return tracer

def call(times):
    for _ in range(times):
        os.getppid()

def count(stats):
    return calls_of(stats).get("getppid", 0)

def told(level):
    return [line for each, line in LINES.lines if each == level]

def in_child(work):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException as error:
            os.write(writer, json.dumps(repr(error)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as said:
        answer = json.loads(said.read())
    os.waitpid(child, 0)
    return answer

def traced_child():
    tracer = start()
    found = [count(on_loop(tracer, lambda: call(7))), count(in_thread(tracer, lambda: call(8)))]
    joined = tracer.health()["kernel_side"]
    tracer.stop()
    return [*found, joined["joined"]]

def links():
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += "bpf_link" in os.readlink("/proc/self/fd/" + name)
        except OSError:
            pass
    return found

def tell(**found):
    print(json.dumps(found))
"""

# Others, which have the seats meanwhile.
HOLDERS = """
def holds(count, **options):
    '''Fork so many that trace until the returned pipe is closed.'''
    go, held = os.pipe(), []
    for _ in range(count):
        reader, writer = os.pipe()
        if not os.fork():
            os.close(go[1])
            os.write(writer, start(**options).health()["kernel_side"]["joined"].encode())
            os.read(go[0], 1)
            os._exit(0)
        os.close(writer)
        held.append(os.read(reader, 20).decode())
    return go[1], held
"""


def run(script: str, **options: Any) -> dict[str, Any]:
    """Run a script in a process of its own; return what it tells."""
    found: dict[str, Any] = json.loads(
        run_python(TRACER + textwrap.dedent(script), **options).splitlines()[-1]
    )
    return found


def run_under(processes: int, script: str) -> dict[str, Any]:
    """Run it under ``kerneltrace run``, with a pool for so many processes."""
    outer = """
        import sys
        from kerneltrace_core.cli.__main__ import main
        main(["run", "--required", "--processes", sys.argv[2], "--", sys.executable, "-c",
              sys.argv[1]])
    """
    inner = TRACER + textwrap.dedent(script)
    found: dict[str, Any] = json.loads(run_python(outer, inner, str(processes)).splitlines()[-1])
    return found
