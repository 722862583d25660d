"""Run the traced example under mixed traffic and show where its requests spend their time.

python examples/demo.py [--seconds S] [--serve]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import textwrap
import time
from collections.abc import Iterable

from tour.child import EXAMPLES, application, free_port
from tour.findings import findings
from tour.ledger import ledger
from tour.paint import WIDTH, bold
from tour.table import table
from tour.traffic import MIX, Traffic

TRY = ("nothing", "sleep", "blocking-sleep", "file", "lock", "sqlite", "upstream")
BACKENDS = {
    "bpf": "Counted in the kernel by BPF programs (backend bpf).",
    "procfs": (
        "No BPF here, so the same was counted from /proc (backend procfs): times, switches and\n"
        "bytes, but neither why a request was blocked nor its system calls. `make doctor` says\n"
        "what is missing."
    ),
}
UNTRACED = "Nothing was traced (backend off): is KERNELTRACE_ENABLED or KERNELTRACE_BACKEND set?"


def show(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
    print(flush=True)


class Progress:
    """One line that moves on a terminal, else a plain line every two seconds."""

    def __init__(self) -> None:
        self.moves = sys.stdout.isatty()
        self._next = 0.0

    def __call__(self, traffic: Traffic) -> None:
        passed = time.monotonic() - traffic.started
        waiting = sum(traffic.sent.values()) - traffic.answered - len(traffic.failures)
        text = f"  {min(passed, traffic.seconds):4.1f} of {traffic.seconds:g} s: "
        text += f"{traffic.answered:5} requests answered, {waiting:3} under way"
        if self.moves:
            print(f"\r{text}", end="", flush=True)
        elif passed >= self._next:
            self._next = passed + 2
            print(text, flush=True)

    def end(self) -> None:
        print("\n" if self.moves else "", flush=True)


def demo(seconds: float) -> int:
    """Show the three pictures; returns the exit status."""
    print(bold("kerneltrace demo"))
    print("  starting examples/fastapi_app.py under uvicorn ...", flush=True)
    with application("--port", "0") as child:
        url = child.wait_until_ready()
        print(f"  {url}: {len(MIX)} routes, mixed traffic for {seconds:g} s", flush=True)
        traffic = Traffic(url, seconds)
        progress = Progress()
        requests = asyncio.run(traffic.run(progress))
        progress.end()
    for line in child.notices:
        print(textwrap.fill(f"the application said: {line}", WIDTH, initial_indent="  "))
    for line in traffic.failures[:5]:
        print(f"  failed: {line}")
    traced = [request for request in requests if request["attribution"] != "none"]
    if not traced:
        print(UNTRACED)
        return 1 if traffic.failures else 0
    show(table(traced, [pace.path for pace in MIX]))
    show(ledger(max(traced, key=lambda request: request["wall_ns"])))
    show(findings(traced))
    print(BACKENDS[traced[0]["backend"]])
    print("Next: `make serve` to try it by hand, README.md to trace your own application.")
    return 1 if traffic.failures else 0


def serve(port: int) -> int:
    """Leave the application running until Ctrl-C or its end."""
    port = free_port(port)
    log_config = str(EXAMPLES / "logging.json")
    print(bold("The traced example is being served; Ctrl-C ends it. Try, in another shell:"))
    for path in TRY:
        print(f"  curl -i http://127.0.0.1:{port}/{path}")
    print("Each response has a Server-Timing header, each request a log line below.\n", flush=True)
    with application("--port", str(port), "--log-config", log_config, quiet=False) as child:
        try:
            return child.process.wait()
        except KeyboardInterrupt:
            return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="leave the application running")
    parser.add_argument("--seconds", type=float, default=8, help="how long to send requests")
    parser.add_argument("--port", type=int, default=8000, help="of --serve; another if it is taken")
    arguments = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        return serve(arguments.port) if arguments.serve else demo(arguments.seconds)
    except KeyboardInterrupt:
        print()
        return 130


if __name__ == "__main__":
    sys.exit(main())
