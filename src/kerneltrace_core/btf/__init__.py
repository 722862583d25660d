"""ELF and BTF as pure data: bytes in, dataclasses out."""

from __future__ import annotations

from kerneltrace_core.errors import FormatError

__all__ = ["FormatError"]
