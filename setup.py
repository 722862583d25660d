"""Compile what setuptools cannot describe in pyproject.toml: three extensions and the BPF objects.

The wheel is abi3: one file serves CPython 3.10 and later. On systems other than
Linux nothing is compiled; the package imports there and says "Linux only" when used.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Command, Extension, setup
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


def check_interpreter() -> None:
    """Refuse a free-threaded build of CPython, which the limited API does not serve."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SystemExit(
            f"build kerneltrace: this is a free-threaded Python {version}, and kerneltrace's C "
            f"parts rely on the GIL and on the limited API, which it has not (use the default "
            f"build of Python {version})"
        )


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


def header_folders(machine: str) -> list[str]:
    """Return where the kernel's headers of a machine are: this one's own, or a cross package's."""
    if machine == platform.machine():
        multiarch = sysconfig.get_config_var("MULTIARCH") or f"{machine}-linux-gnu"
        return [f"/usr/include/{multiarch}", "/usr/include"]
    return [f"/usr/{machine}-linux-gnu/include", "/usr/include"]


def compile_probes(sources: list[Path], folder: Path, machine: str) -> None:
    """Compile BPF sources to CO-RE objects without DWARF; BTF stays, loading needs it."""
    if machine not in TARGETS:
        refuse(f"no BPF target for machine {machine}")
    clang, strip = tool("clang"), tool("llvm-strip")
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        target = folder / f"{source.name.removesuffix('.c')}.o"
        made = target.with_suffix(".new")
        command = [clang, "-g", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
        command += ["-target", "bpf", "-mcpu=v3", f"-D__TARGET_ARCH_{TARGETS[machine]}"]
        command += ["-I", str(PROBES / "include"), "-I", str(PROBES)]
        for headers in header_folders(machine):
            command += ["-idirafter", headers]
        subprocess.run([*command, "-c", str(source), "-o", str(made)], check=True)
        subprocess.run([strip, "-g", str(made)], check=True)
        # What is the same stays older than the extension that its hash is compiled into.
        if target.exists() and target.read_bytes() == made.read_bytes():
            made.unlink()
        else:
            made.replace(target)


class BpfObjects(Command):
    """Compile BPF sources for a machine, this or another, to look at them."""

    description = "compile BPF sources for a machine (x86_64, aarch64)"
    user_options = [
        ("machine=", None, "default: this machine"),
        ("folder=", None, "where the objects go"),
        ("sources=", None, "folder of the sources; default: probes"),
    ]

    def initialize_options(self) -> None:
        self.machine = platform.machine()
        self.folder = ""
        self.sources = str(PROBES)

    def finalize_options(self) -> None:
        self.folder = self.folder or f"build/bpf/{self.machine}"

    def run(self) -> None:
        sources = sorted(Path(self.sources).glob("*.bpf.c"))
        compile_probes(sources, Path(self.folder), self.machine)


class BuildNative(build_ext):
    """Compile the BPF objects beside the extensions."""

    def run(self) -> None:
        if LINUX:
            check_interpreter()
            check_headers()
            in_place = self.inplace or getattr(self, "editable_mode", False)
            sources = sorted(PROBES.glob("*.bpf.c"))
            if not sources:
                raise SystemExit(
                    "build kerneltrace: no probes/*.bpf.c here: the source is incomplete"
                )
            folder = (Path("src") if in_place else Path(self.build_lib)) / OBJECTS
            compile_probes(sources, folder, platform.machine())
            self.note_digest(folder / "requests.bpf.o")
        super().run()

    def note_digest(self, programs: Path) -> None:
        """Compile the hash of the request programs in, for who compares it and reads no object."""
        digest = hashlib.sha256(programs.read_bytes()).hexdigest()
        (extension,) = (each for each in self.extensions if each.name.endswith("._libbpf"))
        extension.define_macros.append(("KT_REQUESTS_SHA256", f'"{digest}"'))
        extension.depends.append(str(programs))


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
    cmdclass={"bdist_wheel": Abi3Wheel, "bpf_objects": BpfObjects, "build_ext": BuildNative},
)
