"""tracefs: where it is mounted, and the tracepoints that it lists."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["PLACES", "category_names", "find_tracefs", "read_tracepoint_id", "tracepoint_names"]

# The second is where kernels before 4.1 had it, and where debugfs still mounts it by itself.
PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")


def find_tracefs(places: tuple[str, ...] = PLACES) -> Path | None:
    """Return where tracefs is mounted and may be entered; None if it is not mounted.

    Raises PermissionError if it may be there, but this process cannot look inside.
    """
    closed: OSError | None = None
    for place in places:
        try:
            os.stat(f"{place}/events")  # noqa: PTH116 - Path.exists() hides EACCES on 3.12+
        except FileNotFoundError:
            continue
        except OSError as error:
            closed = closed or error
        else:
            return Path(place)
    if closed is not None:
        raise closed
    return None


def read_tracepoint_id(tracefs: Path, category: str, name: str) -> int:
    """Return the number by which perf_event_open(2) knows a tracepoint. Raises OSError."""
    return int((tracefs / "events" / category / name / "id").read_text())


def category_names(tracefs: Path) -> list[str]:
    """Return the categories of tracepoints, sorted; raises OSError."""
    return sorted(path.name for path in (tracefs / "events").iterdir() if path.is_dir())


def tracepoint_names(tracefs: Path, category: str) -> list[str]:
    """Return the tracepoints of a category, sorted; none of an unknown one; raises OSError."""
    folder = tracefs / "events" / category
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir())
