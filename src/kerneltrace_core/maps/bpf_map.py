"""BpfMap: what all maps have in common, whatever is in them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar

from kerneltrace_core.btf.layout import MapLayout
from kerneltrace_core.errors import MapError, OptionError, UnsupportedError
from kerneltrace_core.maps.calls import MapCalls
from kerneltrace_core.maps.descriptor import Descriptor
from kerneltrace_core.maps.info import MapInfo
from kerneltrace_core.maps.kinds import MapFlags, map_type
from kerneltrace_core.maps.refusals import explain, type_name

__all__ = ["BpfMap"]

Self = TypeVar("Self", bound="BpfMap")


class BpfMap:
    """A map of the kernel, by a descriptor of its own. Made by a session, or by ``open_pinned``.

    Thread-safe; ``close`` may come from another thread. Once closed, with its session or by
    itself, and in a forked child, every use raises ClosedError. Least kernel 5.5 for all of it
    that does not say otherwise; CAP_BPF where unprivileged bpf(2) is off.
    """

    def __init__(
        self, descriptor: Descriptor, name: str, layout: MapLayout | None, calls: MapCalls
    ) -> None:
        self.name = name
        self.layout = layout
        self._descriptor = descriptor
        self._calls = calls
        self._shape = self._read_info(told=[])
        self.type = self._shape.type

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<{type(self).__name__} {self.name} ({type_name(self.type)}){state}>"

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it cannot be used any more, or not in this process."""
        return self._descriptor.closed

    def close(self) -> None:
        """Give up the descriptor; may be repeated. The map lives on while others hold it.

        Does not wait for a call that another thread is in: it ends as if nothing happened.
        """
        self._descriptor.close()

    def fileno(self) -> int:
        """Return the descriptor, for others' system calls; it is this map's while it is open."""
        with self._descriptor as fd:
            return fd

    @property
    def info(self) -> MapInfo:
        """Ask the kernel what this map is: two reads, anew each time."""
        with self._descriptor as fd:
            told = self._calls.fdinfo(fd)
        return self._read_info(told)

    def _read_info(self, told: list[str]) -> MapInfo:
        try:
            with self._descriptor as fd:
                raw = self._calls.info(fd)
        except OSError as error:
            raise MapError(f"describe map {self.name}: {error}", errno=error.errno) from None
        return MapInfo(
            map_type(raw.type),
            raw.id,
            raw.name,
            raw.key_size,
            raw.value_size,
            raw.max_entries,
            MapFlags(raw.flags),
        ).with_fdinfo(told)

    def freeze(self) -> None:
        """Forbid every later change from user space, by anyone; programs still may. Linux 5.2."""
        try:
            with self._descriptor as fd:
                self._calls.freeze(fd)
        except OSError as error:
            if error.errno == errno.EBUSY and not self.info.frozen:
                raise MapError(
                    f"freeze map {self.name}: its memory is mapped writable (close that first)",
                    errno=error.errno,
                ) from None
            if error.errno == errno.EBUSY:  # older kernels: it is frozen already
                error.errno = errno.EPERM
            self._refused("freeze", error)

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Give the map a name in a BPF file system, under which it outlives this process.

        Raises MapError (errno EEXIST: the name is taken; ENOENT: no such folder).
        """
        try:
            with self._descriptor as fd:
                self._calls.pin(fd, os.fspath(path))
        except OSError as error:
            act = f"pin map {self.name} at {os.fspath(path)}"
            raise explain_pin(act, error, os.fspath(path)) from None

    def unpin(self, path: str | os.PathLike[str]) -> None:
        """Take a name away again. Raises MapError if it is not there."""
        try:
            Path(path).unlink()
        except OSError as error:
            raise MapError(
                f"unpin map {self.name} from {os.fspath(path)}: {error.strerror}",
                errno=error.errno,
            ) from None

    # ---- for the subclasses ---------------------------------------------------------

    def _refused(self, act: str, error: OSError) -> NoReturn:
        with self._descriptor as fd:
            now = self._shape.with_fdinfo(self._calls.fdinfo(fd))
        raise explain(f"{act} map {self.name}", error, self.name, now) from None

    def _cannot(self, act: str, why: str) -> NoReturn:
        raise UnsupportedError(f"{act} map {self.name}: {why}", errno=errno.EOPNOTSUPP)

    def _wrong(self, act: str, error: OptionError) -> NoReturn:
        raise OptionError(f"{act} map {self.name}: {error}") from None


def explain_pin(act: str, error: OSError, path: str) -> MapError:
    """Return the error for a refusal to pin or to open what is pinned."""
    code = error.errno or 0
    reason = os.strerror(code)
    if code in (errno.EPERM, errno.EINVAL) and not _is_bpf_file_system(path):
        reason = "it is in no BPF file system (mount one: mount -t bpf bpf /sys/fs/bpf)"
    elif code == errno.EACCES:
        reason = "permission denied (the folder, or the name, is another user's)"
    elif code == errno.EPERM and "." in Path(path).name:
        reason = "a BPF file system takes no names with a dot (leave it out)"
    elif code == errno.ENOENT and not Path(path).parent.is_dir():
        reason = f"there is no folder {Path(path).parent} (make it)"
    elif code == errno.ENOENT:
        reason = "nothing is pinned there"
    elif code == errno.EEXIST:
        reason = "the name is taken (open what is there by open_pinned(), or unpin() it)"
    return MapError(f"{act}: {reason}", errno=code)


def _is_bpf_file_system(path: str) -> bool:
    folder = str(Path(path).parent.resolve())
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as lines:
            mounts = [line.split() for line in lines]
    except OSError:
        return False
    inside = [
        each for each in mounts if folder == each[1] or folder.startswith(each[1].rstrip("/") + "/")
    ]
    return bool(inside) and max(inside, key=lambda each: len(each[1]))[2] == "bpf"
