"""What calls on maps return; here without the extension, for who has none."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Batch", "RawInfo"]


class RawInfo(NamedTuple):
    """What the kernel says about a map; see struct bpf_map_info of linux/bpf.h."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


class Batch(NamedTuple):
    """``found`` keys and values, each one after the other; ``next`` None: these were the last."""

    keys: bytes
    values: bytes
    found: int
    next: bytes | None
