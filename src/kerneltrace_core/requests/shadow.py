"""ShadowRegion: memory with a region's layout that no kernel program knows."""

from __future__ import annotations

import ctypes
import mmap

from kerneltrace_core.requests import layout

__all__ = ["ShadowRegion"]


class ShadowRegion:
    """Zeroed private memory, resident only where it was written.

    Private: a forked child has its own. Never unmapped, as threads keep addresses of it; the
    operating system takes it back with the process.
    """

    def __init__(self) -> None:
        size = layout.SLOTS_OFFSET + layout.SLOTS * layout.SLOT_BYTES
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory = memoryview(pages)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
