"""The BPF sources compile for each machine that wheels are made for, and name no register."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("probes", "tests/probes")
EM_BPF = 247
# The one file that may say which registers hold a system call's number and first argument: libbpf
# has macros for the arguments, not for the number. Its fields are relocated by CO-RE.
DEFINITIONS = ROOT / "probes" / "include" / "kt_kernel.h"
# A field of the registers, reached from a variable that holds them.
FIELD_OF_REGISTERS = re.compile(r"\b(?:regs|pt_regs)\b\s*\)?\s*->\s*\w+")
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/ptrace.h"),
    "aarch64": Path("/usr/aarch64-linux-gnu/include/asm/ptrace.h"),
}


def machine_of(object_file: Path) -> tuple[str, int]:
    """Return the magic and the machine in an ELF file's header."""
    data = object_file.read_bytes()
    return data[1:4].decode(), struct.unpack_from("<H", data, 18)[0]


@pytest.mark.skipif(not shutil.which("clang"), reason="no clang")
@pytest.mark.parametrize("machine", sorted(HEADERS))
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_bpf_source_compiles_for(machine: str, folder: str, tmp_path: Path) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"no kernel headers of {machine} (Debian: linux-libc-dev-arm64-cross)")
    sources = sorted((ROOT / folder).glob("*.bpf.c"))

    command = [sys.executable, "setup.py", "-q", "bpf_objects", f"--machine={machine}"]
    command += [f"--sources={folder}", f"--folder={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True)

    assert sources
    assert {path.name: machine_of(path) for path in tmp_path.glob("*.o")} == {
        f"{source.name.removesuffix('.c')}.o": ("ELF", EM_BPF) for source in sources
    }


def test_no_bpf_source_names_a_register() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.[ch]"))
        if path != DEFINITIONS
        for match in FIELD_OF_REGISTERS.finditer(path.read_text())
    ]

    assert found == []


def test_the_definitions_of_registers_are_relocated() -> None:
    text = DEFINITIONS.read_text()
    push = text.index("#pragma clang attribute push(__attribute__((preserve_access_index))")
    pop = text.index("#pragma clang attribute pop")

    assert all(push < at.start() < pop for at in re.finditer(r"struct pt_regs \{", text))
    assert len(re.findall(r"struct pt_regs \{", text)) == len(HEADERS)


def test_a_register_would_be_found() -> None:
    assert FIELD_OF_REGISTERS.search("x = regs->di;")
    assert FIELD_OF_REGISTERS.search("((struct pt_regs *)regs) -> ax")
    assert not FIELD_OF_REGISTERS.search("PT_REGS_PARM1(ctx); cpu->regs")


def test_wheels_are_configured_for_both_machines_and_both_libcs() -> None:
    tomllib = pytest.importorskip("tomllib", reason="python 3.11")
    wheels = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]

    assert sorted(wheels["archs"]) == sorted(HEADERS)
    assert {name.partition("-")[2] for name in wheels["build"]} == {"manylinux_*", "musllinux_*"}
    for name in wheels["build"]:
        select = f"*-{name.partition('-')[2]}"
        packages = [each["before-all"] for each in wheels["overrides"] if each["select"] == select]
        assert len(packages) == 1, select
        assert {"clang", "llvm"} <= set(packages[0].split())
