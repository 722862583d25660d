"""Open a map by its descriptor or its name in a BPF file system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kerneltrace_core.btf.layout import MapLayout
from kerneltrace_core.errors import MapError, OptionError
from kerneltrace_core.maps.arrays import ArrayMap
from kerneltrace_core.maps.bpf_map import BpfMap, explain_pin
from kerneltrace_core.maps.calls import KernelCalls, MapCalls
from kerneltrace_core.maps.descriptor import Descriptor
from kerneltrace_core.maps.kinds import MapType, map_type
from kerneltrace_core.maps.mapping import HashMap
from kerneltrace_core.maps.nested import ArrayOfMaps, DescriptorMap, HashOfMaps
from kerneltrace_core.maps.percpu import PerCpuArrayMap, PerCpuHashMap
from kerneltrace_core.maps.queues import BloomFilter, QueueMap
from kerneltrace_core.maps.shape import differences
from kerneltrace_core.maps.stacks import StackTraceMap
from kerneltrace_core.maps.storage import StorageMap
from kerneltrace_core.maps.streams import UnreadableMap
from kerneltrace_core.maps.tries import TrieMap

__all__ = ["adopt", "open_map", "open_pinned"]

CLASSES: dict[MapType | int, type[BpfMap]] = {
    MapType.HASH: HashMap,
    MapType.LRU_HASH: HashMap,
    MapType.SOCKHASH: HashMap,
    MapType.DEVMAP_HASH: HashMap,
    MapType.CGROUP_STORAGE: HashMap,
    MapType.PERCPU_HASH: PerCpuHashMap,
    MapType.LRU_PERCPU_HASH: PerCpuHashMap,
    MapType.PERCPU_CGROUP_STORAGE: PerCpuHashMap,
    MapType.ARRAY: ArrayMap,
    MapType.PERCPU_ARRAY: PerCpuArrayMap,
    MapType.QUEUE: QueueMap,
    MapType.STACK: QueueMap,
    MapType.BLOOM_FILTER: BloomFilter,
    MapType.LPM_TRIE: TrieMap,
    MapType.HASH_OF_MAPS: HashOfMaps,
    MapType.ARRAY_OF_MAPS: ArrayOfMaps,
    MapType.STACK_TRACE: StackTraceMap,
    MapType.PROG_ARRAY: DescriptorMap,
    MapType.CGROUP_ARRAY: DescriptorMap,
    MapType.SOCKMAP: DescriptorMap,
    MapType.XSKMAP: DescriptorMap,
    MapType.REUSEPORT_SOCKARRAY: DescriptorMap,
    MapType.DEVMAP: DescriptorMap,
    MapType.CPUMAP: DescriptorMap,
    MapType.TASK_STORAGE: StorageMap,
    MapType.SK_STORAGE: StorageMap,
    MapType.INODE_STORAGE: StorageMap,
    MapType.CGRP_STORAGE: StorageMap,
}


def open_map(
    fd: int, name: str, layout: MapLayout | None = None, *, calls: MapCalls | None = None
) -> Any:
    """Return the map of a descriptor, as the class that its type has; the descriptor stays yours.

    ``layout`` gives types to keys and values; without one they are bytes. Raises OptionError if
    it does not describe this map, or if the descriptor is not one of a map.
    """
    calls = calls or KernelCalls()
    try:
        own = calls.duplicate(fd)
    except OSError as error:
        raise MapError(f"open map {name}: {error.strerror}", errno=error.errno) from None
    return adopt(own, name, layout, calls)


def open_pinned(
    path: str | os.PathLike[str],
    layout: MapLayout | None = None,
    *,
    name: str | None = None,
    read_only: bool = False,
    calls: MapCalls | None = None,
) -> Any:
    """Open the map that is pinned at a path of a BPF file system; close it, or use ``with``.

    ``read_only``: for a name that one may read and not write; changes are MapError then.
    Raises OptionError if ``layout`` does not describe it (another type, key size, value size or,
    where the layout has one, number of entries), MapError (errno ENOENT) if nothing is pinned.
    """
    calls = calls or KernelCalls()
    place = os.fspath(path)
    try:
        found = calls.open_pinned(place, read_only=read_only)
    except OSError as error:
        raise explain_pin(f"open map pinned at {place}", error, place) from None
    try:
        with open_map(found, name or Path(place).name, layout, calls=calls) as opened:
            entries = opened.info.max_entries
            if layout is not None and layout.max_entries not in (0, entries):
                raise OptionError(
                    f"open map pinned at {place}: it has max_entries {entries}, "
                    f"{layout.name} has {layout.max_entries}"
                )
            return open_map(found, opened.name, layout, calls=calls)
    finally:
        calls.close(found)


def adopt(fd: int, name: str, layout: MapLayout | None, calls: MapCalls) -> Any:
    """Do as ``open_map`` with a descriptor that from now on is the map's, also if this fails."""
    descriptor = Descriptor(fd, f"map {name}", calls)
    try:
        with descriptor as own:
            raw = calls.info(own)
        kind = map_type(raw.type)
        wrong = differences(layout, kind, raw.key_size, raw.value_size) if layout else []
        if wrong:
            raise OptionError(f"open map {name}: {'; '.join(wrong)}")
        return CLASSES.get(kind, UnreadableMap)(descriptor, name, layout, calls)
    except BaseException as error:
        descriptor.close()
        if isinstance(error, MapError) and error.errno is not None:
            raise MapError(f"open map {name}: {error}", errno=error.errno) from None
        raise
