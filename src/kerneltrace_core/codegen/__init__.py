"""Typed Python for an object: ``python -m kerneltrace_core.codegen x.bpf.o -o events.py``."""

from __future__ import annotations

from kerneltrace_core.codegen.module import generate

__all__ = ["generate"]
