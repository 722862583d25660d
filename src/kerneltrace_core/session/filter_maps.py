"""The maps of kt_filter.h: how they go from one filter to the next while programs ask them."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from kerneltrace_core.errors import MapFullError, MapKeyError

__all__ = [
    "CGROUPS",
    "FLAGS",
    "FOLLOW",
    "LAYOUT",
    "LOSSES_AT",
    "SETTINGS",
    "TGIDS",
    "TIDS",
    "UIDS",
    "Entries",
    "FilterMaps",
]

# kt_filter.h
SETTINGS = "kt_filter"
SETTINGS_AT, LOSSES_AT = 0, 1
LAYOUT = struct.Struct("=IIQ")  # flags, pid_namespace, unfollowed
TGIDS, TIDS = "kt_filter_tgids", "kt_filter_tids"
CGROUPS, UIDS = "kt_filter_cgroups", "kt_filter_uids"
FLAGS = {TGIDS: 1, TIDS: 2, CGROUPS: 4, UIDS: 8}
FOLLOW = 16

Entries = dict[int, Any]  # of a map; the value of a process is the named one it descends from


class FilterMaps:
    """What is written in the maps. Not thread-safe; FilterControl is.

    ``flags``: as the kernel has them. ``let_go``: children that were followed for a moment, and
    had to make room.
    """

    def __init__(self, maps: Mapping[str, Any]) -> None:
        self._maps = maps
        self.flags = 0
        self.let_go = 0

    def read(self) -> dict[str, Entries]:
        """Return the entries of each map that is a condition now."""
        return {
            name: dict(self._maps[name].items())
            for name, flag in FLAGS.items()
            if self.flags & flag
        }

    def exchange(
        self,
        flags: int,
        namespace: int,
        sets: Mapping[str, Entries],
        roots: Collection[int],
        old: Mapping[str, Entries],
    ) -> None:
        """Go from whatever they have to ``sets``, and what descends from ``roots``.

        Children that are neither there nor in ``old`` were born since the change began.
        """
        common = [name for name in sets if self.flags & FLAGS[name]]
        for name in sets.keys() - set(common):
            # A child may have been added in the midst of an earlier clear.
            self._maps[name].clear()
            self._add(name, sets[name], old)
        # Both the old and the new conditions hold while those of both are exchanged.
        self._write(flags | self.flags & ~FOLLOW, namespace)
        # All of them first: with the new entries of one, whom neither wants could pass.
        for name in common:
            self._remove_others(name, sets[name], roots)
        for name in common:
            self._add(name, sets[name], old)
        self._write(flags, namespace)
        for name in FLAGS.keys() - sets.keys():
            self._maps[name].clear()

    def _write(self, flags: int, namespace: int) -> None:
        self._maps[SETTINGS][SETTINGS_AT] = LAYOUT.pack(flags, namespace, 0)
        self.flags = flags

    def _add(self, name: str, entries: Entries, old: Mapping[str, Entries]) -> None:
        for key, value in entries.items():
            while True:
                try:
                    self._maps[name][key] = value
                    break
                except MapFullError:
                    known = entries.keys() | old.get(name, {}).keys()
                    if name != TGIDS or not self._let_go_of_one(known):
                        raise

    def _let_go_of_one(self, known: Collection[int]) -> bool:
        """Make room of a child that would have found none before or after the change."""
        found = self._maps[TGIDS]
        child = next((each for each in found if each not in known), None)
        if child is None:
            return False
        with suppress(MapKeyError):  # it ended
            del found[child]
            self.let_go += 1
        return True

    def _remove_others(self, name: str, entries: Entries, roots: Collection[int]) -> None:
        """Remove what is not in ``entries`` and, of processes, descends from none of ``roots``."""
        found = self._maps[name]
        if roots and name == TGIDS:
            # What is born from now on has the right root.
            for key in [key for key in found if key in entries]:
                found[key] = entries[key]
        # Again, until there are none: one may have had a child while it was on its way out.
        while leaving := [
            key
            for key, root in found.items()
            if key not in entries and not (name == TGIDS and root in roots)
        ]:
            for key in leaving:
                with suppress(MapKeyError):  # it ended
                    del found[key]
