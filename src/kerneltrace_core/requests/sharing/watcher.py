"""A process that removes pins when the last member is gone, whatever the members died of."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

__all__ = ["start_watcher"]

logger = logging.getLogger("kerneltrace")

START_SECONDS = 5.0

# $1 is the folder of the pins, $2 the inode of its file system entry `alive`. flock(1) sleeps in
# the kernel until no process holds the shared lock that every member holds for life. Then it
# looks whether the folder is still the one that it was started for. `alive`, by which others are
# kept out, goes after the pins: who finds it gone makes new ones. It is gone already if the last
# member was killed before it removed the folder, too; who is about to live there tries again.
REMOVE = (
    'cd -P -- "$1" && case "$(stat -c %i alive)" in '
    '"$2") rm -f register; rm -f -- *; rmdir alive && cd / && rmdir -- "$1" ;; '
    '"") cd / && rmdir -- "$1" ;; esac'
)
# The lock's file is opened before the start is reported: who removes it a moment later is seen.
SCRIPT = f"""trap '' TERM INT HUP QUIT
exec 9< "$1/alive" || exit
flock --exclusive /proc/self/fd/9 sh -c '{REMOVE}' kerneltrace-pins "$1" "$2" &
"""


def start_watcher(folder: Path, inode: int) -> bool:
    """Start it, detached from this process; False where its tools (sh, flock, stat) are missing.

    Blocks for some milliseconds. It is idle, has no descriptor of this process's and no privilege
    that the process has not.
    """
    if not all(map(shutil.which, ("sh", "flock", "stat", "rm", "rmdir"))):
        return False
    try:
        # The shell ends at once, so that the watcher is nobody's child here.
        subprocess.run(
            ["sh", "-c", SCRIPT, "kerneltrace-pins", str(folder), str(inode)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            timeout=START_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("watch pins: %s", error)
        return False
    return True
