"""Maps: what programs and user space share, as mutable mappings."""

from __future__ import annotations

from kerneltrace_core.maps.arrays import ArrayMap
from kerneltrace_core.maps.bpf_map import BpfMap
from kerneltrace_core.maps.codec import Codec
from kerneltrace_core.maps.histogram import Bucket, Histogram
from kerneltrace_core.maps.info import MapInfo
from kerneltrace_core.maps.kinds import MapFlags, MapType
from kerneltrace_core.maps.mapped import MappedArray
from kerneltrace_core.maps.mapping import HashMap, KeyedMap
from kerneltrace_core.maps.maps import Maps
from kerneltrace_core.maps.nested import ArrayOfMaps, DescriptorMap, HashOfMaps
from kerneltrace_core.maps.opening import open_map, open_pinned
from kerneltrace_core.maps.percpu import PerCpuArrayMap, PerCpuHashMap
from kerneltrace_core.maps.queues import BloomFilter, QueueMap
from kerneltrace_core.maps.stacks import BuildIdFrame, StackTraceMap, stack_failure
from kerneltrace_core.maps.storage import StorageMap
from kerneltrace_core.maps.streams import UnreadableMap
from kerneltrace_core.maps.tries import TrieMap

__all__ = [
    "ArrayMap",
    "ArrayOfMaps",
    "BloomFilter",
    "BpfMap",
    "Bucket",
    "BuildIdFrame",
    "Codec",
    "DescriptorMap",
    "HashMap",
    "HashOfMaps",
    "Histogram",
    "KeyedMap",
    "MapFlags",
    "MapInfo",
    "MapType",
    "MappedArray",
    "Maps",
    "PerCpuArrayMap",
    "PerCpuHashMap",
    "QueueMap",
    "StackTraceMap",
    "StorageMap",
    "TrieMap",
    "UnreadableMap",
    "open_map",
    "open_pinned",
    "stack_failure",
]
