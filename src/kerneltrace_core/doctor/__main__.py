"""Run the doctor: ``python -m kerneltrace_core.doctor``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TextIO

from kerneltrace_core.doctor.diagnosis import Diagnosis
from kerneltrace_core.doctor.document import as_document, not_linux_document
from kerneltrace_core.doctor.examine import examine
from kerneltrace_core.doctor.text import as_text

__all__ = ["main"]


def main(
    arguments: Sequence[str] | None = None,
    *,
    out: TextIO | None = None,
    platform: str = sys.platform,
) -> int:
    """Print the diagnosis and return the exit status: 0, 1 or 2."""
    parser = argparse.ArgumentParser(
        prog="python -m kerneltrace_core.doctor",
        description="Say what of kerneltrace works here, what does not, and the fix.",
        epilog="exit status: 0 all works, 1 something is missing, 2 could not tell",
    )
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    options = parser.parse_args(arguments)
    out = out if out is not None else sys.stdout
    if platform != "linux":
        if options.json:
            out.write(json.dumps(not_linux_document(platform), indent=2) + "\n")
        else:
            out.write(f"kerneltrace doctor: Linux only (this is {platform})\n")
        return 1
    diagnosis: Diagnosis = examine()
    text = json.dumps(as_document(diagnosis), indent=2) if options.json else as_text(diagnosis)
    out.write(text + "\n")
    return diagnosis.exit_status


if __name__ == "__main__":
    sys.exit(main())
