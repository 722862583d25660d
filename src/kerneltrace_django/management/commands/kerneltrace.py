"""``manage.py kerneltrace``: the doctor, the last requests, and the ledger of any command."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.core.management import execute_from_command_line
from django.core.management.base import BaseCommand, CommandError, CommandParser

from kerneltrace_core import KernelTraceError
from kerneltrace_core.requests import RequestTracer
from kerneltrace_django.ledger import page
from kerneltrace_django.recent import folder_of
from kerneltrace_django.recent_socket import ask_all
from kerneltrace_django.recent_table import table
from kerneltrace_django.settings import options
from kerneltrace_django.work import Work, start_tracer

__all__ = ["Command"]

DOCTOR = "kerneltrace_core.doctor"
NOT_MEASURED = 2


class Command(BaseCommand):
    """Offer one subcommand for each question."""

    help = "What the Linux kernel does for this project."
    # The doctor is for projects in which something is wrong.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the subcommands."""
        commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
        doctor = commands.add_parser(
            "doctor",
            help="say what of kerneltrace works here, what does not, and the fix",
            epilog="exit status: 0 all works, 1 something is missing, 2 could not tell",
        )
        doctor.add_argument("--json", action="store_true", help="print the same as JSON")
        recent = commands.add_parser(
            "recent",
            help="print the last requests of every process of the running server",
            description="Needs KERNELTRACE['RECENT_SOCKET'], a folder, in the server's settings.",
            epilog="exit status: 0 somebody answered, 2 nobody did",
        )
        recent.add_argument("-n", "--number", type=int, default=20, help="how many (default 20)")
        recent.add_argument(
            "--slowest", action="store_true", help="the slowest that are remembered, not the last"
        )
        recent.add_argument("--folder", help="where to ask, instead of RECENT_SOCKET")
        recent.add_argument("--json", action="store_true", help="print one JSON object a line")
        execute = commands.add_parser(
            "exec",
            help="run a management command, and print its kernel ledger to stderr at the end",
            usage="manage.py kerneltrace exec [-h] -- COMMAND ...",
        )
        execute.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")

    def handle(self, *_args: Any, **given: Any) -> None:
        """Do what was asked for."""
        if given["subcommand"] == "doctor":
            self._doctor(given)
        elif given["subcommand"] == "recent":
            self._recent(given)
        else:
            self._exec(given["words"])

    def _doctor(self, given: dict[str, Any]) -> None:
        # A process of its own: the doctor stands above what a web application may import.
        arguments = ["--json"] if given["json"] else []
        done = subprocess.run(
            [sys.executable, "-m", DOCTOR, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        self.stdout.write(done.stdout, ending="")
        if done.returncode:
            sys.exit(done.returncode)

    def _recent(self, given: dict[str, Any]) -> None:
        folder = given["folder"] or folder_of(options())
        if folder is None:
            raise CommandError(
                "find the running server: KERNELTRACE['RECENT_SOCKET'] is not set "
                "(set it to a folder, such as '/run/shop/kerneltrace', and start the server anew)",
                returncode=NOT_MEASURED,
            )
        requests, answered = [], 0
        for path, answer in ask_all(folder):
            if isinstance(answer, OSError):
                self.stderr.write(f"ask {path}: {answer.strerror or answer}")
                continue
            answered += 1
            requests += [{"pid": answer["pid"], **each} for each in answer["requests"]]
        if not answered:
            raise CommandError(
                f"find the running server: no process answers in {Path(folder)} "
                "(each begins to with its first traced request)",
                returncode=NOT_MEASURED,
            )
        order = "kernel_wall_ms" if given["slowest"] else "time"
        requests.sort(key=lambda request: request[order] or 0)
        shown = requests[-given["number"] :] if given["number"] > 0 else []
        if given["json"]:
            self.stdout.write("".join(json.dumps(each) + "\n" for each in shown), ending="")
        else:
            self.stdout.write(table(shown), ending="")

    def _exec(self, words: list[str]) -> None:
        if words[:1] == ["--"]:
            words = words[1:]
        if not words:
            raise CommandError("exec: say which command (manage.py kerneltrace exec -- migrate)")
        running = RequestTracer.shared(options().tracer).ready
        try:
            tracer = start_tracer()
        except KernelTraceError as error:
            raise CommandError(f"KERNELTRACE['REQUIRED']: {error}") from error
        work = Work(tracer)
        try:
            # Whatever it raises is its own: SystemExit with its exit status, for one.
            execute_from_command_line([sys.argv[0], *words])
        finally:
            work.end()
            if not running:
                tracer.stop()
            with suppress(OSError, ValueError):
                self.stdout.flush()
            self.stderr.write(page(words[0], work.stats), style_func=str, ending="")
