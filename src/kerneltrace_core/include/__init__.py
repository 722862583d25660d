"""The C headers for probes: where they are, for `clang -I`."""

from __future__ import annotations

from pathlib import Path

from kerneltrace_core.errors import LoadError

__all__ = ["include_folder"]

FIRST = "kerneltrace/kt_event.h"


def include_folder() -> Path:
    """Return the folder from which ``#include <kerneltrace/kt_event.h>`` is found.

    Raises LoadError if the installation lacks them.
    """
    folder = Path(__file__).parent
    if not (folder / FIRST).is_file():
        raise LoadError(f"find headers for probes: {folder / FIRST} is missing (reinstall)")
    return folder
