"""Control groups of version 2 by their folder: the number that the kernel has for each."""

from __future__ import annotations

import os
from pathlib import Path

from kerneltrace_core.errors import OptionError

__all__ = ["cgroup_id"]

# Every group of version 2 has this file, and none of version 1.
MARK = "cgroup.controllers"


def cgroup_id(group: str | Path | int) -> int:
    """Return the number of a group, as bpf_get_current_cgroup_id() gives it; numbers pass.

    It is the inode number of its folder (kernfs, Linux 5.5 on 64-bit machines). Raises
    OptionError for what is no such folder.
    """
    if isinstance(group, int):
        return group
    folder = Path(group)
    try:
        (folder / MARK).stat()
        return folder.stat().st_ino
    except OSError as error:
        raise OptionError(
            f"Filter option cgroups: {os.fspath(group)!r} is no control group of version 2: "
            f"{error.strerror} (a folder such as /sys/fs/cgroup/system.slice)"
        ) from None
