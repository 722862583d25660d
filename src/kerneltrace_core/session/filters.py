"""Whom a session traces: a Filter says it, a FilterControl writes it into the object's maps."""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kerneltrace_core.btf.layout import ObjectLayout
from kerneltrace_core.errors import MapKeyError, OptionError, UnsupportedError
from kerneltrace_core.session.cgroups import cgroup_id

__all__ = ["FOLLOWERS", "Filter", "FilterControl"]

# kt_filter.h
SETTINGS = "kt_filter"
SETTINGS_AT, LOSSES_AT = 0, 1
LAYOUT = struct.Struct("=IIQ")  # flags, pid_namespace, unfollowed
TGIDS, TIDS = "kt_filter_tgids", "kt_filter_tids"
CGROUPS, UIDS = "kt_filter_cgroups", "kt_filter_uids"
FLAGS = {TGIDS: 1, TIDS: 2, CGROUPS: 4, UIDS: 8}
BY_NUMBER = FLAGS[TGIDS] | FLAGS[TIDS]
FOLLOW = 16
# The header's own programs, which are needed only to follow forks; attached before all others.
FOLLOWERS = ("kt_follow_free", "kt_follow_exit", "kt_follow_fork")
OPTIONS = {TGIDS: "pids", TIDS: "tids", CGROUPS: "cgroups", UIDS: "uids"}


@dataclass(frozen=True)
class Filter:
    """Whose events are wanted; of every kind that is given, the task has to be in the set.

    ``current_process``: this process, besides ``pids``. ``pids`` and ``tids``: processes and
    threads by number, as this process's pid namespace has them. ``cgroups``: control groups of
    version 2 with all that is in them, up to 31 levels deeper, by folder or number. ``uids``: as
    the initial user namespace has them. ``follow_forks``: also processes that those of ``pids``
    start from now on, and theirs; a process that has ended is forgotten, which is else up to you:
    its number is used again some day.

    None is no condition; an empty set is one that nobody meets. Immutable. Raises OptionError.
    """

    current_process: bool = False
    pids: Collection[int] | None = None
    tids: Collection[int] | None = None
    cgroups: Collection[str | Path | int] | None = None
    uids: Collection[int] | None = None
    follow_forks: bool = False

    def __post_init__(self) -> None:
        for each in fields(self):
            allowed, accept = KINDS[each.name]
            value = getattr(self, each.name)
            try:
                kept = accept(value)
            except (TypeError, ValueError):
                raise OptionError(
                    f"Filter option {each.name}: {value!r} is not {allowed}"
                ) from None
            object.__setattr__(self, each.name, kept)
        if self.follow_forks and not self.current_process and self.pids is None:
            raise OptionError(
                "Filter option follow_forks: True without processes to follow "
                "(add current_process=True or pids)"
            )


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _numbers(low: int, high: int) -> Callable[[Any], tuple[int, ...] | None]:
    def accept(value: Any) -> tuple[int, ...] | None:
        if value is None:
            return None
        for number in (numbers := tuple(value)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError
            if not low <= number <= high:
                raise ValueError
        return tuple(sorted(set(numbers)))

    return accept


def _groups(value: Any) -> tuple[str | Path | int, ...] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes)):
        raise TypeError
    groups = tuple(dict.fromkeys(value))
    for group in groups:
        if isinstance(group, bool) or not isinstance(group, (str, Path, int)) or group == "":
            raise TypeError
        if isinstance(group, int) and not 0 < group < 2**64:
            raise ValueError
    return groups


# PID_MAX_LIMIT of include/linux/threads.h is 4 194 304; the last uid means none.
KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "current_process": ("True or False", _switch),
    "pids": ("None or a list of process numbers from 1 to 4194304", _numbers(1, 2**22)),
    "tids": ("None or a list of thread numbers from 1 to 4194304", _numbers(1, 2**22)),
    "cgroups": ("None or a list of folders of control groups, or of their numbers", _groups),
    "uids": ("None or a list of user numbers from 0 to 4294967294", _numbers(0, 2**32 - 2)),
    "follow_forks": ("True or False", _switch),
}


class FilterControl:
    """Change whom the programs of a session trace, while they run; a change holds at once.

    Thread-safe. No system call costs more than microseconds, but there is one for each entry.
    """

    def __init__(self, maps: Mapping[str, Any], *, follows: bool = False) -> None:
        self._maps = maps
        self._follows = follows
        self._filter = Filter()
        self._flags = 0
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls, maps: Mapping[str, Any], layout: ObjectLayout, *, follows: bool = False
    ) -> FilterControl | None:
        """Return the control of an object's maps; None if it was built without kt_filter.h.

        ``follows``: the programs FOLLOWERS are loaded and attached.
        """
        return cls(maps, follows=follows) if SETTINGS in layout.maps else None

    @property
    def filter(self) -> Filter:
        """Who was asked for last."""
        return self._filter

    @property
    def processes(self) -> frozenset[int]:
        """The processes that are traced now by number, followed ones too; reads the map."""
        return frozenset(self._maps[TGIDS])

    @property
    def unfollowed(self) -> int:
        """How many children were not followed, because the map of processes was full."""
        return int(self._maps[SETTINGS][LOSSES_AT].unfollowed)

    def set(self, wanted: Filter) -> None:
        """Trace whom ``wanted`` says and nobody else, from the return of this call on.

        Until then some that only one of the old and the new filter wants are traced, nobody
        whom neither wants, and everybody whom both want. Children that are followed stay if the
        process they descend from does. Raises OptionError: more entries than a map has room for,
        a folder that is no control group, forks to follow in a session that was opened without.
        """
        given: object = wanted
        if not isinstance(given, Filter):
            raise OptionError(f"set filter: {given!r} is not a Filter")
        if wanted.follow_forks and not self._follows:
            raise OptionError(
                "Filter option follow_forks: True in a session that was opened without it "
                "(open the session with a filter that follows forks)"
            )
        sets = _sets(wanted)
        for name, entries in sets.items():
            if len(entries) > (room := self._maps[name].info.max_entries):
                raise OptionError(
                    f"Filter option {OPTIONS[name]}: {len(entries)} given, map {name} has room "
                    f"for {room} (give it more: map_sizes={{{name!r}: {len(entries)}}})"
                )
        flags = sum(FLAGS[name] for name in sets) | (FOLLOW if wanted.follow_forks else 0)
        with self._lock:
            namespace = _pid_namespace() if (flags | self._flags) & BY_NUMBER else 0
            new = [name for name in sets if not self._flags & FLAGS[name]]
            for name in new:
                self._add(name, sets[name])
            # Both the old and the new conditions hold while those of both are exchanged.
            self._write(flags | self._flags & ~FOLLOW, namespace)
            for name in sets.keys() - set(new):
                self._remove_others(name, sets[name], follow=wanted.follow_forks)
                self._add(name, sets[name])
            self._write(flags, namespace)
            for name in FLAGS.keys() - sets.keys():
                self._maps[name].clear()
            self._filter, self._flags = wanted, flags

    def clear(self) -> None:
        """Trace everybody."""
        self.set(Filter())

    def _write(self, flags: int, namespace: int) -> None:
        self._maps[SETTINGS][SETTINGS_AT] = LAYOUT.pack(flags, namespace, 0)

    def _add(self, name: str, entries: frozenset[int]) -> None:
        for entry in entries:
            self._maps[name][entry] = entry if name == TGIDS else b"\1"

    def _remove_others(self, name: str, entries: frozenset[int], *, follow: bool) -> None:
        """Remove what is not in ``entries`` and, if it is to follow, does not descend from one."""
        found = self._maps[name]
        # Again, until there are none: one may have had a child while it was on its way out.
        while leaving := [
            entry
            for entry, named in found.items()
            if (named if follow and name == TGIDS else entry) not in entries
        ]:
            for entry in leaving:
                with suppress(MapKeyError):  # it ended
                    del found[entry]


def _sets(wanted: Filter) -> dict[str, frozenset[int]]:
    """Return what the maps are to hold, by name of map, without those that are no condition."""
    return dict(_conditions(wanted))


def _conditions(wanted: Filter) -> Iterator[tuple[str, frozenset[int]]]:
    if wanted.current_process or wanted.pids is not None:
        own = {os.getpid()} if wanted.current_process else set()
        yield TGIDS, frozenset(own.union(wanted.pids or ()))
    if wanted.tids is not None:
        yield TIDS, frozenset(wanted.tids)
    if wanted.cgroups is not None:
        yield CGROUPS, frozenset(map(cgroup_id, wanted.cgroups))
    if wanted.uids is not None:
        yield UIDS, frozenset(wanted.uids)


def _pid_namespace() -> int:
    """Return the number of the pid namespace in which this process's numbers are meant."""
    if not sys.platform.startswith("linux"):
        return 0  # a session of a test
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError as error:
        raise UnsupportedError(
            f"filter by process: cannot read /proc/self/ns/pid: {error.strerror} (mount /proc)",
            errno=error.errno,
        ) from None
