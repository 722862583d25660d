"""Readers of what the kernel sends: ring buffers and perf buffers, as frames."""

from __future__ import annotations

from kerneltrace_core.ring.protocol import Drained, ReaderProtocol, Strided

__all__ = ["Drained", "ReaderProtocol", "Strided"]
