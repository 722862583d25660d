"""What an attachment owns: descriptors, mostly, whose end is the attachment's end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Protocol

from kerneltrace_core._native import lib

__all__ = ["Attached", "Descriptors", "LibbpfLink"]


class Attached(Protocol):
    """One attachment in the kernel. Not thread-safe; Link is."""

    def close(self) -> None:
        """Detach and free. After it no hit begins; may be called once. May wait for RCU, 20 ms."""

    def abandon(self) -> None:
        """In a forked child: give up this process's references, the parent's stay attached."""


class Descriptors:
    """Links and perf events: the kernel detaches when the last descriptor closes."""

    def __init__(self, fds: Iterable[int]) -> None:
        self.fds = tuple(fds)

    def close(self) -> None:
        """Close them."""
        for fd in self.fds:
            os.close(fd)

    abandon = close  # the parent has its own


class LibbpfLink:
    """A link that libbpf made, for sections that it alone knows."""

    def __init__(self, link: lib.Link) -> None:
        self._link: Any = link

    def close(self) -> None:
        """Detach and free."""
        lib.destroy_link(self._link)

    def abandon(self) -> None:
        """Close the descriptor: destroying may tell the kernel to stop it for everybody."""
        os.close(lib.link_fd(self._link))
