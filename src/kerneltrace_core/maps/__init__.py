"""Maps: what programs and user space share, as mutable mappings."""

from __future__ import annotations
