"""Sessions where something of the machine is not to be seen, as in containers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from harness.objects import compile_object

OPEN = """
import sys
from kerneltrace_core import BtfTracepoint, Session, UnsupportedError
try:
    Session(sys.argv[1], [BtfTracepoint("sys_enter", program="on_call")]).open()
except UnsupportedError as error:
    print(error)
"""


def test_without_the_kernels_btf_no_tracepoint_is_blamed(require: Callable[..., None]) -> None:
    require("tracepoint:sys_enter", "ring_buffer", "capability:cap_sys_admin")
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare(1)")

    found = subprocess.run(
        [
            *(unshare, "-m", "sh", "-c", 'mount -t tmpfs none /sys && exec "$@"', "sh"),
            *(sys.executable, "-c", OPEN, str(compile_object("session"))),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount:" in found.stderr or "unshare:" in found.stderr:
        pytest.skip(found.stderr.strip())

    assert found.stderr == ""
    assert "the kernel's BTF is not in /sys/kernel/btf/vmlinux nor beside" in found.stdout
    assert "make /sys visible" in found.stdout
