"""A session's maps by name."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kerneltrace_core.btf.layout import MapLayout
from kerneltrace_core.errors import ClosedError, MapKeyError
from kerneltrace_core.maps.bpf_map import BpfMap
from kerneltrace_core.maps.calls import KernelCalls, MapCalls
from kerneltrace_core.maps.opening import open_map

__all__ = ["Maps"]

# libbpf makes maps of these sections, too.
SECTIONS = (".rodata", ".data", ".bss")


class Maps(Mapping[str, Any]):
    """The maps of an object by name, each opened when it is first asked for. Thread-safe.

    Raises MapKeyError for a name that the object has not; ClosedError after the session.
    """

    def __init__(
        self,
        map_fd: Callable[[str], int],
        layouts: Mapping[str, MapLayout],
        *,
        calls: MapCalls | None = None,
    ) -> None:
        self._map_fd = map_fd
        self._layouts = layouts
        self._calls = calls
        self._opened: dict[str, BpfMap] = {}
        self._closed = False
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> Any:
        layout = self._layouts.get(name)
        if layout is None:
            raise MapKeyError(f"find map {name}: the object has no such map ({self._hint(name)})")
        with self._lock:
            if self._closed:
                raise ClosedError(f"use map {name}: its session is closed")
            found = self._opened.get(name)
            if found is None or found.closed:
                self._calls = self._calls or KernelCalls()
                found = open_map(self._map_fd(name), name, layout, calls=self._calls)
                self._opened[name] = found
            return found

    def _hint(self, name: object) -> str:
        text = str(name)
        if text.endswith(SECTIONS):
            return "global variables are in session.variables"
        near = difflib.get_close_matches(text, self._layouts, 1)
        return f"did you mean {near[0]}?" if near else f"it has {', '.join(self) or 'none'}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._layouts)

    def __len__(self) -> int:
        return len(self._layouts)

    def __contains__(self, name: object) -> bool:
        return name in self._layouts

    def close(self) -> None:
        """Close every map that was opened here; may be repeated. In a forked child: forget them."""
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, {}
        for each in opened.values():
            each.close()

    def abandon(self) -> None:
        """In a child just forked: forget the parent's maps."""
        self._lock = threading.RLock()
        self.close()
