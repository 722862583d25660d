"""Describe maps by hand."""

from __future__ import annotations

from kerneltrace_core.btf.layout import ArrayLayout, MapLayout, Scalar, TypeLayout
from kerneltrace_core.maps.kinds import MapType

U32 = Scalar(4, signed=False, kind="int", name="__u32")
U64 = Scalar(8, signed=False, kind="int", name="__u64")
CHAR = Scalar(1, signed=True, kind="char", name="char")


def layout_of(
    kind: MapType,
    key: TypeLayout | None,
    value: TypeLayout | None,
    entries: int,
    *,
    flags: int = 0,
    inner: MapLayout | None = None,
    name: str = "made",
) -> MapLayout:
    """Describe a map; where there is no key it has none, where there is no value 4 bytes."""
    key_size = key.size if key else 0
    value_size = value.size if value else 4
    return MapLayout(name, kind, entries, key, value, key_size, value_size, inner, flags)


def text(size: int) -> ArrayLayout:
    """Describe ``char[size]``."""
    return ArrayLayout(CHAR, size)
