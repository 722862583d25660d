"""kerneltrace for ASGI applications: one middleware, and a lifespan hook for who wants it."""

from __future__ import annotations

from kerneltrace_asgi.lifespan import kerneltrace_lifespan
from kerneltrace_asgi.middleware import KernelTraceMiddleware

__all__ = ["KernelTraceMiddleware", "kerneltrace_lifespan"]
