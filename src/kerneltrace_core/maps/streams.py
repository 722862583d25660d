"""Maps that are streams or the kernel's own: here to be described, pinned and closed, not read."""

from __future__ import annotations

from typing import Any, NoReturn

from kerneltrace_core.maps.bpf_map import BpfMap
from kerneltrace_core.maps.kinds import MapType
from kerneltrace_core.maps.refusals import type_name

__all__ = ["UnreadableMap"]

REASONS: dict[MapType | int, str] = {
    MapType.RINGBUF: "it is a ring buffer, a stream of records (read session.events())",
    MapType.PERF_EVENT_ARRAY: "it is a perf buffer, a stream of records (read session.events())",
    MapType.USER_RINGBUF: "it is a ring buffer that user space writes, which is not supported",
    MapType.STRUCT_OPS: "it is a table of programs (its link attaches it)",
    MapType.ARENA: "it is memory that programs share, without entries",
}


class UnreadableMap(BpfMap):
    """A map that has no entries to look up: a ring or perf buffer, an arena, struct_ops."""

    def _refuse(self, *_: Any) -> NoReturn:
        why = REASONS.get(self.type, f"maps of {type_name(self.type)} are not known here")
        self._cannot("look into", why)

    __getitem__ = __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = _refuse
    get = keys = values = items = pop = clear = update = insert = replace = push = _refuse

    def __bool__(self) -> bool:
        return True
