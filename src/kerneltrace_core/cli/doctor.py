"""``kerneltrace doctor``: what works here, what does not, and the fix."""

from __future__ import annotations

import argparse

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "execute"]

SUMMARY = "say what works on this machine, and how to get the rest"
DESCRIPTION = "Say what of kerneltrace works here, what does not, and the fix."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def execute(given: argparse.Namespace) -> int:
    """Print the diagnosis; return its exit status."""
    from kerneltrace_core.doctor.__main__ import main

    return main(["--json"] if given.json else [])
