"""What tests of programs that use kerneltrace need: no kernel, any operating system."""

from __future__ import annotations
