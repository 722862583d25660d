"""An interpreter that any user can start, and what it needs to find what this one imports."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from kerneltrace_core.kernel.support import Support

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
CHECK = (
    "import os, sys; os.execv(sys.argv[1], [sys.argv[1], '-c', 'import cffi, kerneltrace_core'])"
)


def shared_path() -> str:
    """Return the import path without the standard library of this interpreter."""
    library = Path(os.__file__).parent
    paths = [path for path in sys.path if path and Path(path).is_dir()]
    own = [p for p in paths if "site-packages" in p or library not in (Path(p), *Path(p).parents)]
    return os.pathsep.join(own)


@functools.cache
def open_interpreter() -> str | None:
    """Return an interpreter of this version that uid 65534 can start from within itself."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        if not Path(candidate).exists() or shutil.which("setpriv") is None:
            continue
        # Twice: setpriv itself starts it with capabilities that open any folder.
        done = subprocess.run(
            [*AS_NOBODY, "--inh-caps=-all", candidate, "-c", CHECK, candidate],
            capture_output=True,
            check=False,
            cwd="/",
            env={"PYTHONPATH": shared_path()},
        )
        if done.returncode == 0:
            return candidate
    return None


def an_open_interpreter() -> Support:
    """Tell whether there is one, for ``require``."""
    if os.geteuid() == 0 and open_interpreter():
        return Support.yes()
    return Support.no("needs root, setpriv and an interpreter that everybody can start")
