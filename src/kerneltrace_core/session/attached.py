"""What an attachment owns: descriptors, mostly, whose end is the attachment's end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kerneltrace_core._native import attach as native
from kerneltrace_core._native.held import Descriptor, LibbpfLink

__all__ = ["Attached", "BySectionLink", "Descriptors"]


class Attached(Protocol):
    """One attachment in the kernel. Not thread-safe; Link is.

    Forgetting it ends it, so that what raises before anybody has it leaves nothing attached.
    """

    def close(self) -> None:
        """Detach and free. After it no hit begins; may be called once. May wait for RCU, 20 ms."""

    def abandon(self) -> None:
        """In a forked child: give up this process's references, the parent's stay attached."""


class Descriptors:
    """Links and perf events: the kernel detaches when the last descriptor closes."""

    def __init__(self, held: Iterable[Descriptor]) -> None:
        self._held = tuple(held)

    def close(self) -> None:
        """Close them."""
        for each in self._held:
            each.close()

    abandon = close  # the parent has its own


class BySectionLink:
    """A link that libbpf made, for sections that it alone knows."""

    def __init__(self, link: LibbpfLink) -> None:
        self._link = link

    def close(self) -> None:
        """Detach and free."""
        native.detach(self._link)

    def abandon(self) -> None:
        """Close the child's descriptor."""
        self._link.end()
