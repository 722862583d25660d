"""Print where the headers for probes are: `python -m kerneltrace_core.include [--cflags]`."""

from __future__ import annotations

import argparse
import sys

from kerneltrace_core.errors import LoadError
from kerneltrace_core.include import include_folder


def main() -> int:
    """Print the folder, or the option that gives it to a compiler; 1 if there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m kerneltrace_core.include",
        description="Say where the C headers for probes are (<kerneltrace/kt_event.h>).",
    )
    parser.add_argument("--cflags", action="store_true", help="as an option for clang: -I...")
    wanted = parser.parse_args()
    try:
        folder = include_folder()
    except LoadError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"-I{folder}\n" if wanted.cflags else f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
