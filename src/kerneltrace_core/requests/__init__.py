"""Which request is current on this thread now, and what the kernel did for it."""

from __future__ import annotations

from kerneltrace_core.requests.context import current, request_here
from kerneltrace_core.requests.engine import Exchange, Record
from kerneltrace_core.requests.greenlets import greenlet_library
from kerneltrace_core.requests.options import IntegrationOptions, TracerOptions, resolve
from kerneltrace_core.requests.stats import CallStats, KernelStats
from kerneltrace_core.requests.tracer import RequestTracer

__all__ = [
    "CallStats",
    "Exchange",
    "IntegrationOptions",
    "KernelStats",
    "Record",
    "RequestTracer",
    "TracerOptions",
    "current",
    "greenlet_library",
    "request_here",
    "resolve",
]
