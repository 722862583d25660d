"""Where a session's object and the kernel's BTF come from."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kerneltrace_core.errors import LoadError, OptionError

__all__ = ["find_btf", "read_object"]


def read_object(source: str | Path | bytes) -> tuple[str, bytes]:
    """Return the name and bytes of an object: bytes, a path, or the name of a built-in one.

    A plain word without a slash or dot is a built-in name. Raises LoadError if it is not there.
    """
    if isinstance(source, bytes):
        return "object", source
    if isinstance(source, str) and "/" not in source and "." not in source:
        # Not at the top: it loads libbpf, which a session in a test does without.
        from kerneltrace_core.bpf.object import builtin_object

        try:
            return source, builtin_object(source)
        except LoadError as error:
            if error.errno != errno.ENOENT:
                raise
            raise LoadError(
                f"read built-in BPF object {source}: there is none of that name "
                f"(a path has a slash or a dot: ./{source})",
                errno=error.errno,
            ) from error
    path = Path(source)
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise LoadError(f"read BPF object {path}: {cause.strerror}", errno=cause.errno) from cause
    except ValueError as cause:
        raise LoadError(f"read BPF object {str(path)!r}: {cause}") from cause
    return path.name.removesuffix(".o").removesuffix(".bpf"), data


def find_btf(place: str | Path, release: str | None = None) -> Path:
    """Return the BTF file for this kernel: ``place`` itself, or one in it by ``uname -r``.

    A folder is searched for RELEASE.btf, RELEASE/vmlinux, vmlinux-RELEASE and RELEASE.
    Raises OptionError that says what was looked for.
    """
    path = Path(place)
    if path.is_file():
        return path
    if not path.is_dir():
        raise OptionError(f"Session option btf: {path} does not exist")
    release = release or os.uname().release
    candidates = (f"{release}.btf", f"{release}/vmlinux", f"vmlinux-{release}", release)
    for candidate in candidates:
        if (path / candidate).is_file():
            return path / candidate
    raise OptionError(
        f"Session option btf: {path} has no BTF of kernel {release} "
        f"(looked for {', '.join(candidates)})"
    )
