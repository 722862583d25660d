"""Compile what setuptools cannot describe in pyproject.toml: three extensions and the BPF objects.

The wheel is abi3: one file serves CPython 3.10 and later. On systems other than
Linux nothing is compiled; the package imports there and says "Linux only" when used.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

LINUX = sys.platform.startswith("linux")
PROBES = Path("probes")
OBJECTS = Path("kerneltrace_core/_objects")
PACKAGES = (
    "Debian, Ubuntu: apt install clang llvm gcc libbpf-dev libelf-dev zlib1g-dev python3-dev; "
    "Fedora: dnf install clang llvm gcc libbpf-devel elfutils-libelf-devel zlib-devel "
    "python3-devel; Alpine: apk add clang llvm gcc musl-dev linux-headers libbpf-dev "
    "elfutils-dev zlib-dev python3-dev"
)
# The BPF side's name for the machine, which chooses the registers.
TARGETS = {"x86_64": "x86", "aarch64": "arm64"}


def refuse(cause: str) -> None:
    """End the build with one line that says what to install."""
    raise SystemExit(f"build kerneltrace: {cause} ({PACKAGES})")


def tool(*names: str) -> str:
    """Find a program, by its plain name or with a version at the end (llvm-strip-14)."""
    for name in names:
        for candidate in (name, *(f"{name}-{version}" for version in range(22, 11, -1))):
            if path := shutil.which(candidate):
                return path
    refuse(f"{names[0]} not found")
    raise AssertionError("refuse() does not return")


def check_headers() -> None:
    """Ask the C compiler for the headers before it fails with a page of errors."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if not shutil.which(compiler):
        compiler = tool("cc", "gcc")
    for header, what in (("bpf/libbpf.h", "libbpf"), ("libelf.h", "libelf"), ("zlib.h", "zlib")):
        probe = subprocess.run(
            [compiler, "-E", "-xc", "-"],
            input=f"#include <{header}>\n",
            text=True,
            capture_output=True,
            check=False,
        )
        if probe.returncode:
            refuse(f"header {header} of {what} not found")


def compile_probes(folder: Path) -> None:
    """Compile probes/*.bpf.c to CO-RE objects without DWARF; BTF stays, loading needs it."""
    machine = platform.machine()
    if machine not in TARGETS:
        refuse(f"no BPF target for machine {machine}")
    clang, strip = tool("clang"), tool("llvm-strip")
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    sources = sorted(PROBES.glob("*.bpf.c"))
    if not sources:
        raise SystemExit("build kerneltrace: no probes/*.bpf.c here: the source is incomplete")
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        target = folder / f"{source.name.removesuffix('.c')}.o"
        command = [clang, "-g", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
        command += ["-target", "bpf", "-mcpu=v3", f"-D__TARGET_ARCH_{TARGETS[machine]}"]
        command += ["-I", str(PROBES / "include"), "-I", str(PROBES)]
        command += ["-idirafter", f"/usr/include/{multiarch}", "-idirafter", "/usr/include"]
        subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
        subprocess.run([strip, "-g", str(target)], check=True)


class BuildNative(build_ext):
    """Compile the BPF objects beside the extensions."""

    def run(self) -> None:
        if LINUX:
            check_headers()
            in_place = self.inplace or getattr(self, "editable_mode", False)
            compile_probes((Path("src") if in_place else Path(self.build_lib)) / OBJECTS)
        super().run()


class Abi3Wheel(bdist_wheel):
    """Tag the wheel for every interpreter that the limited API serves."""

    def finalize_options(self) -> None:
        if LINUX:
            self.py_limited_api = "cp310"
        super().finalize_options()


def own_extension(name: str) -> Extension:
    """Describe _native/_NAME.c, one translation unit of the headers in NAME/, for any CPython."""
    return Extension(
        f"kerneltrace_core._native._{name}",
        sources=[f"src/kerneltrace_core/_native/_{name}.c"],
        depends=sorted(map(str, Path(f"src/kerneltrace_core/_native/{name}").glob("*.h"))),
        define_macros=[("Py_LIMITED_API", "0x030a0000")],
        extra_compile_args=["-O2", "-Wall", "-Wextra"],
        py_limited_api=True,
    )


setup(
    ext_modules=[own_extension("events"), own_extension("step")] if LINUX else [],
    cffi_modules=["src/kerneltrace_core/_native/build_libbpf.py:ffi"] if LINUX else [],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Abi3Wheel},
)
