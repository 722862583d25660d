from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.bpf_source import compile_bpf
from harness.c_types import bpf_source
from unit.test_btf_object import SOURCE

CASES = 10_000
FUZZ = Path(__file__).with_name("btf_fuzz.py")

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="BPF objects are compiled on Linux"
)


def test_ten_thousand_damaged_objects_end_in_a_typed_error_or_a_value(tmp_path: Path) -> None:
    paths = []
    for name, source in (("types", bpf_source()), ("object", SOURCE)):
        path = tmp_path / f"{name}.bpf.o"
        path.write_bytes(compile_bpf(source))
        paths.append(str(path))

    # A crash, or memory without end, is to end the child and not this process.
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(FUZZ), "2024", str(CASES), *paths],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-4000:]
    ends = json.loads(done.stdout)
    assert sum(ends.values()) == CASES
    assert set(ends) == {"refused", "refused by libbpf", "read", "read in part"}
    # Damage that is never seen, or always, would test nothing.
    assert min(ends["refused"], ends["read"]) > CASES // 10
