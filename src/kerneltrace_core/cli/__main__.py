"""Run a command: ``kerneltrace run -- CMD``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from kerneltrace_core.cli import doctor, run

__all__ = ["main"]

COMMANDS = {"run": run, "doctor": doctor}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status; ``run`` does not return, but becomes its command."""
    parser = argparse.ArgumentParser(
        prog="kerneltrace", description="What the Linux kernel did for each request."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        module.add_arguments(
            commands.add_parser(name, help=module.SUMMARY, description=module.DESCRIPTION)
        )
    given = parser.parse_args(arguments)
    status: int = COMMANDS[given.command].execute(given)
    return status


if __name__ == "__main__":
    sys.exit(main())
