"""Whether a map is of the shape that a layout describes."""

from __future__ import annotations

from kerneltrace_core.btf.layout import MapLayout
from kerneltrace_core.maps.kinds import MapType, map_type
from kerneltrace_core.maps.refusals import type_name

__all__ = ["differences"]


def differences(
    layout: MapLayout, kind: MapType | int, key_size: int, value_size: int
) -> list[str]:
    """Say in what a map is not what the layout describes, with both numbers; nothing if it is."""
    wrong = []
    if layout.type != kind:
        wrong.append(f"it is of type {type_name(kind)}, not {type_name(map_type(layout.type))}")
    # A source may leave sizes to the loader, which are 0 here then.
    if layout.key_size not in (0, key_size):
        wrong.append(f"its keys have {key_size} bytes, not {layout.key_size}")
    if layout.value_size not in (0, value_size):
        wrong.append(f"its values have {value_size} bytes, not {layout.value_size}")
    return wrong
