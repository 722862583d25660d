"""Find binaries by path or name, and their functions' places in the file."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from kerneltrace_core.btf.elf import Elf, Symbol
from kerneltrace_core.errors import FormatError
from kerneltrace_core.kernel.symbols import nearest

__all__ = ["FunctionNotFoundError", "find_binary", "function_offset", "mapped_files", "own_files"]

LIBRARY_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
IFUNC = 10
HIDDEN_VERSION = 0x8000
DYNSYM = 11


class FunctionNotFoundError(Exception):
    """A binary has no such function, or several; ``remedy`` may be empty."""

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.remedy = remedy


def parse_mapped_files(lines: Iterable[str]) -> list[str]:
    """Return the paths of the files in lines of ``/proc/<pid>/maps``, each once, in order."""
    found: dict[str, None] = {}
    for line in lines:
        parts = line.rstrip("\n").split(None, 5)
        if len(parts) == 6 and parts[5].startswith("/") and not parts[5].endswith(" (deleted)"):
            found[parts[5]] = None
    return list(found)


def mapped_files(pid: int | str) -> list[str]:
    """Return the files that a process has mapped; none if it may not be looked at."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
            return parse_mapped_files(lines)
    except OSError:
        return []


def own_files() -> list[str]:
    """Return where the running interpreter may be: its executable, then its libpython."""
    executable = os.path.realpath("/proc/self/exe")
    library = [path for path in mapped_files("self") if Path(path).name.startswith("libpython")]
    return list(dict.fromkeys([executable, *library, os.path.realpath(sys.executable)]))


def find_binary(name: str, pid: int | None) -> str | None:
    """Return the path by which this process can open a binary; None if it is not found.

    A path of another process is looked up in that one's mount namespace, if it is another. A
    name alone: what the process (this one for None) has mapped, then libraries, then commands.
    """
    if "/" not in name:
        path = _find_name(name, pid)
        if path is None:
            return None
    else:
        path = os.path.abspath(name)  # noqa: PTH100 - resolve() would follow links of this mount
    inside = f"/proc/{pid}/root{path}"
    if pid is not None and _other_mounts(pid) and os.path.exists(inside):  # noqa: PTH110
        return inside
    return path if os.path.exists(path) else None  # noqa: PTH110


def _other_mounts(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")  # noqa: PTH115
    except OSError:
        return False


def _find_name(name: str, pid: int | None) -> str | None:
    for path in mapped_files("self" if pid is None else pid):
        if Path(path).name == name:
            return path
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = [f"/lib/{multiarch}", f"/usr/lib/{multiarch}"] if multiarch else []
    for folder in (*folders, *LIBRARY_FOLDERS):
        path = f"{folder}/{name}"
        if Path(path).is_file():
            return path
    return shutil.which(name)


def function_offset(data: bytes, path: str, name: str) -> int:
    """Return where in the file a function begins, by its name in .symtab or .dynsym. Pure.

    Of a versioned symbol, the default version. Raises FunctionNotFoundError, FormatError.
    """
    elf = Elf.parse(data, path)
    symbols = [symbol for symbol in elf.symbols() if symbol.section_index]
    found = [symbol for symbol in symbols if symbol.name == name]
    if not found and "@" not in name:
        # .symtab writes versions into names: memcpy@@GLIBC_2.14 is the default one.
        found = [symbol for symbol in symbols if symbol.name.startswith(f"{name}@@")]
    if len({symbol.value for symbol in found}) > 1:
        found = _default_version(elf, name) or found
    if found and all(symbol.kind == IFUNC for symbol in found):
        variants = sorted({each.name for each in symbols if f"_{name}_" in each.name})
        raise FunctionNotFoundError(
            f"{name} is chosen among variants when the program starts (IFUNC)",
            f"probe the variant in use, one of {', '.join(variants[:8])}"
            if variants
            else "probe the variant in use by its offset",
        )
    functions = [symbol for symbol in found if symbol.is_function]
    exported = {symbol.value for symbol in functions if not symbol.is_local}
    places = exported if len(exported) == 1 else {symbol.value for symbol in functions}
    if not places:
        names = {symbol.name for symbol in symbols if symbol.is_function}
        near = nearest(name, names)
        if not names:
            raise FunctionNotFoundError(
                f"{path} has no symbols at all",
                "it is stripped: give offset=, or install its unstripped build",
            )
        raise FunctionNotFoundError(
            f"{path} has no function {name}",
            f"did you mean {' or '.join(near)}?" if near else "",
        )
    if len(places) > 1:
        offsets = ", ".join(f"{elf.file_offset(value):#x}" for value in sorted(places))
        raise FunctionNotFoundError(
            f"{path} has several functions {name}", f"give one of the offsets {offsets}"
        )
    return elf.file_offset(places.pop())


def _default_version(elf: Elf, name: str) -> list[Symbol]:
    """Return a symbol's default version, which .gnu.version tells beside .dynsym."""
    versions = elf.section(".gnu.version")
    if versions is None or not 0 < versions.link < len(elf.sections):
        return []
    table = elf.sections[versions.link]
    if table.type != DYNSYM:
        return []
    order: Literal["little", "big"] = "little" if elf.little else "big"
    numbers = versions.data
    found = []
    for position, symbol in enumerate(elf.symbols_of(table), 1):
        if symbol.name != name or not symbol.section_index:
            continue
        pair = numbers[2 * position : 2 * position + 2]
        if len(pair) == 2 and not int.from_bytes(pair, order) & HIDDEN_VERSION:
            found.append(symbol)
    return found


def read_binary(path: str) -> bytes:
    """Read a binary whole. Raises OSError, FormatError if it is not a file."""
    if not Path(path).is_file():
        raise FormatError(f"read {path}: it is not a file")
    return Path(path).read_bytes()
