"""Whom a session traces: a Filter says it, a FilterControl writes it into the object's maps."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kerneltrace_core.btf.layout import ObjectLayout
from kerneltrace_core.errors import OptionError, UnsupportedError
from kerneltrace_core.session.cgroups import cgroup_id
from kerneltrace_core.session.filter_maps import (
    CGROUPS,
    FLAGS,
    FOLLOW,
    LOSSES_AT,
    SETTINGS,
    TGIDS,
    TIDS,
    UIDS,
    Entries,
    FilterMaps,
)

__all__ = ["FOLLOWERS", "Filter", "FilterControl"]

BY_NUMBER = FLAGS[TGIDS] | FLAGS[TIDS]
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
        self._written = FilterMaps(maps)
        self._filter = Filter()
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
        return int(self._maps[SETTINGS][LOSSES_AT].unfollowed) + self._written.let_go

    def set(self, wanted: Filter) -> None:
        """Trace whom ``wanted`` says and nobody else, from the return of this call on.

        Until then some that only one of the old and the new filter wants are traced, nobody
        whom neither wants, and everybody whom both want. Children that are followed stay if the
        process they descend from does. Raises OptionError: more entries than a map has room for,
        a folder that is no control group, forks to follow in a session that was opened without.
        Whatever it raises, the old filter holds.
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
        flags = sum(FLAGS[name] for name in sets) | (FOLLOW if wanted.follow_forks else 0)
        with self._lock:
            written = self._written
            old_flags = written.flags
            namespace = _pid_namespace() if (flags | old_flags) & BY_NUMBER else 0
            old = written.read()
            old_roots = _named(old) if old_flags & FOLLOW else frozenset()
            roots = _named(sets) if wanted.follow_forks else frozenset()
            self._check_room(sets, old, roots)
            try:
                written.exchange(flags, namespace, sets, roots, old)
            except BaseException:  # also what a signal handler raises
                written.exchange(old_flags, namespace, old, old_roots, old)
                raise
            self._filter = wanted

    def clear(self) -> None:
        """Trace everybody."""
        self.set(Filter())

    def _check_room(
        self, sets: Mapping[str, Entries], old: Mapping[str, Entries], roots: Collection[int]
    ) -> None:
        for name, entries in sets.items():
            room = self._maps[name].info.max_entries
            staying = old.get(name, {}).items() if name == TGIDS else ()
            children = sum(root in roots and child not in entries for child, root in staying)
            if (needed := len(entries) + children) > room:
                given = f"{len(entries)} given"
                if children:
                    given += f" and {children} of their children followed"
                raise OptionError(
                    f"Filter option {OPTIONS[name]}: {given}, map {name} has room for {room} "
                    f"(give it more: map_sizes={{{name!r}: {needed}}})"
                )


def _named(sets: Mapping[str, Entries]) -> frozenset[int]:
    """Return the processes that were named: children have the one they descend from."""
    return frozenset(sets.get(TGIDS, {}).values())


def _sets(wanted: Filter) -> dict[str, Entries]:
    """Return what the maps are to hold, by name of map, without those that are no condition."""
    return {
        name: {key: key if name == TGIDS else b"\1" for key in keys}
        for name, keys in _conditions(wanted)
    }


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
