"""The command: ``python -m kerneltrace_core.codegen x.bpf.o -o events.py [--check]``."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from kerneltrace_core.btf.layout import ObjectLayout
from kerneltrace_core.codegen.module import generate
from kerneltrace_core.errors import KernelTraceError

__all__ = ["main"]

FAILED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Write typed Python for an object.

    Returns 0; 1 when ``--check`` found the file stale, after a diff; 2 when the object cannot be
    read, or the file not be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m kerneltrace_core.codegen",
        description="Write typed Python for a BPF object: event classes of its structs, and a "
        "session with its programs, maps and variables as attributes.",
    )
    parser.add_argument("object", type=Path, help="the compiled object, x.bpf.o")
    parser.add_argument("-o", "--output", type=Path, help="the module to write; else to stdout")
    parser.add_argument(
        "--struct", action="append", default=[], metavar="NAME",
        help="a C struct that is to be an event class too (may be repeated)",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true",
        help="write nothing; show how OUTPUT differs, and end with 1 if it does",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.check and options.output is None:
        parser.error("--check needs --output, the file to look at")
    act = f"read {options.object}"
    try:
        layout = ObjectLayout.from_elf(options.object.read_bytes(), str(options.object))
        source = generate(layout, options.object.name, options.struct)
        act = f"{'check' if options.check else 'write'} {options.output or 'to stdout'}"
        if options.output is None:
            sys.stdout.write(source)
        elif options.check:
            return _check(options.output, source, options.object.name)
        else:
            options.output.write_text(source, encoding="utf-8")
    except KernelTraceError as error:
        sys.stderr.write(f"codegen: {error}\n")
        return FAILED
    except OSError as error:
        sys.stderr.write(f"codegen: {act}: {error.strerror or error}\n")
        return FAILED
    return 0


def _check(output: Path, source: str, made_from: str) -> int:
    """Compare the file with what would be written; 1 if they differ."""
    # What is no text is no module of ours: the difference shows it.
    there = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    if there == source:
        return 0
    lines = difflib.unified_diff(
        there.splitlines(keepends=True),
        source.splitlines(keepends=True),
        str(output),
        f"generated from {made_from}",
    )
    sys.stdout.writelines(lines)
    return 1


if __name__ == "__main__":
    sys.exit(main())
