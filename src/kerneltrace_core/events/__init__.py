"""Typed kernel events: declared or made from BTF, checked, decoded, in columns."""

from __future__ import annotations
