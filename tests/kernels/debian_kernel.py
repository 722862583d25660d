"""Find a Debian kernel that was unpacked from its packages, and read its modules."""

from __future__ import annotations

import gzip
import lzma
import re
import subprocess
from pathlib import Path


class KernelNotFoundError(FileNotFoundError):
    """A folder is no unpacked kernel, or no unpacked kernel has the wanted version."""


class DebianKernel:
    """One kernel: image, configuration and modules under the folder it was unpacked into.

    Older packages have the image in boot/ and modules in lib/modules; from linux 7 on both are
    in usr/lib/modules.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        found = [
            path
            for pattern in ("lib/modules/*", "usr/lib/modules/*")
            for path in sorted(self.folder.glob(pattern))
            if path.is_dir()
        ]
        if not found:
            raise KernelNotFoundError(f"open kernel {folder}: no lib/modules in it")
        self.modules_folder = found[-1]
        self.release = self.modules_folder.name
        images = (
            self.folder / "boot" / f"vmlinuz-{self.release}",
            self.modules_folder / "vmlinuz",
        )
        image = next((path for path in images if path.exists()), None)
        if image is None:
            raise KernelNotFoundError(f"open kernel {folder}: no vmlinuz for {self.release}")
        self.image = image
        self._module_files = {
            module_name(path): path for path in self.modules_folder.rglob("*.ko*")
        }

    def has_option(self, name: str) -> bool:
        """Tell whether CONFIG_<name> is built in or a module; False where no configuration is."""
        configurations = (
            self.folder / "boot" / f"config-{self.release}",
            self.modules_folder / "config",
        )
        for path in configurations:
            if path.exists():
                return option_is_on(path.read_text(), name)
        return False

    def modules_in_load_order(self, names: list[str]) -> dict[str, bytes]:
        """Return the modules and what they depend on, plain, dependencies first.

        A name without a file is taken as built in.
        """
        ordered: dict[str, bytes] = {}
        seen: set[str] = set()

        def visit(name: str) -> None:
            name = name.replace("-", "_")
            if name in seen or name not in self._module_files:
                return
            seen.add(name)
            content = read_module(self._module_files[name])
            for dependency in parse_module_dependencies(content):
                visit(dependency)
            ordered[name] = content

        for name in names:
            visit(name)
        return ordered


def find_kernel(wanted: str, cache: Path) -> DebianKernel:
    """Return the kernel in folder `wanted`, else the newest in `cache` whose version begins so.

    "6.1" finds 6.1.0-50-cloud-amd64, never 6.12.107; cloud kernels are preferred.
    """
    if "/" in wanted:
        return DebianKernel(Path(wanted))
    folders = [path for path in cache.glob("[0-9]*") if path.is_dir()]
    matching = [path for path in folders if version_begins(path.name, wanted)]
    matching = [path for path in matching if "cloud" in path.name] or matching
    if not matching:
        there = ", ".join(sorted(path.name for path in folders)) or "none"
        raise KernelNotFoundError(
            f"find kernel {wanted} in {cache}: only {there} (run fetch_kernels.sh)"
        )
    return DebianKernel(max(matching, key=lambda path: version_key(path.name)))


def version_begins(release: str, prefix: str) -> bool:
    """Tell whether `release` begins with the version `prefix`, number by number."""
    return release.startswith(prefix) and not release[len(prefix) :][:1].isdigit()


def version_key(release: str) -> list[int]:
    """Return the numbers of a release, so that releases sort by age: 6.1.9 before 6.1.10."""
    return [int(number) for number in re.findall(r"\d+", release)]


def module_name(path: Path) -> str:
    """Return the name by which the kernel knows the module in a file."""
    return path.name.partition(".ko")[0].replace("-", "_")


def option_is_on(configuration: str, name: str) -> bool:
    """Tell whether a kernel configuration has CONFIG_<name> as y or m."""
    return re.search(rf"^CONFIG_{name}=[ym]$", configuration, re.MULTILINE) is not None


def read_module(path: Path) -> bytes:
    """Return a module's ELF file, unpacked."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", path], check=True, stdout=subprocess.PIPE).stdout
    return path.read_bytes()


def parse_module_dependencies(module: bytes) -> list[str]:
    """Return the names in a module's .modinfo "depends=" entry."""
    entry = re.search(rb"(?:^|\0)depends=([^\0]*)\0", module)
    return entry[1].decode().split(",") if entry and entry[1] else []
