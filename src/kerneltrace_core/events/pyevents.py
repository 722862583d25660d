"""Typed events out of frames: ``_native/_events.c`` in Python, fallback and oracle.

The modules below follow its headers: frames, field, event, reader.
"""

from __future__ import annotations

from kerneltrace_core.events.pyevent import KernelEvent
from kerneltrace_core.events.pyfield import REST, Field
from kerneltrace_core.events.pyframes import Selector, pack
from kerneltrace_core.events.pyreader import Batch, Reader

__all__ = ["REST", "Batch", "Field", "KernelEvent", "Reader", "Selector", "pack"]
