"""What the kernel gives for an attachment, owned by C from the call on that makes it.

A signal handler may raise between any two steps of Python, so also between a system call and the
assignment of what it returned. So the call stores it in memory that is there before it, and whose
destructor, in C too, ends it with the last reference: by then nothing of Python has to run.
"""

from __future__ import annotations

from collections.abc import Callable

from kerneltrace_core._native.lib import ffi, lib

__all__ = ["Descriptor", "LibbpfLink"]


class Descriptor:
    """A descriptor whose end is the attachment's end; forgetting it closes it. Not thread-safe."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ffi.gc(ffi.new("int *", -1), lib.kt_descriptor_close)

    def fill(self, call: Callable[..., int], *arguments: object) -> int:
        """Let a call of the shim store its descriptor here; return 0 or its negative errno."""
        try:
            return call(*arguments, self._held)
        except BaseException:
            self.close()  # at once: the raised one's traceback may keep this for long
            raise

    @property
    def fd(self) -> int:
        """The number, negative when it is closed."""
        return int(self._held[0])

    def close(self) -> None:
        """Close it; may be repeated."""
        lib.kt_descriptor_close(self._held)


class LibbpfLink:
    """A link that libbpf made; forgetting it detaches. Not thread-safe.

    In a forked child only its descriptor is closed, and the parent's stays attached.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ffi.gc(ffi.new("struct kt_held_link *"), lib.kt_held_link_free)

    def fill(self, program: object) -> int:
        """Attach a program as libbpf reads its section; return 0 or a negative errno."""
        try:
            return int(lib.kt_section_attach(program, self._held))
        except BaseException:
            self.end()
            raise

    @property
    def fd(self) -> int:
        """The descriptor of the link, which must not have ended."""
        return int(lib.bpf_link__fd(self._held.link))

    def end(self) -> int:
        """Detach and free; may be repeated. Return 0 or a negative errno."""
        return int(lib.kt_held_link_end(self._held))
