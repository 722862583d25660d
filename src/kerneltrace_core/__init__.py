"""In-process kernel tracing for Python: what the Linux kernel did for each request."""

from __future__ import annotations

from kerneltrace_core.errors import (
    AttachError,
    ClosedError,
    KernelTraceError,
    LoadError,
    NativeMissingError,
    OptionError,
    PrivilegeError,
    UnsupportedError,
)

__version__ = "0.1.0"

__all__ = [
    "AttachError",
    "ClosedError",
    "KernelTraceError",
    "LoadError",
    "NativeMissingError",
    "OptionError",
    "PrivilegeError",
    "UnsupportedError",
    "__version__",
]
