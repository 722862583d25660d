"""The class that a map of the kernel has in Python, with the types of its keys and values."""

from __future__ import annotations

from kerneltrace_core.btf.layout import ArrayLayout, MapLayout, StructLayout, TypeLayout
from kerneltrace_core.codegen.annotate import Annotator

__all__ = ["map_annotation"]

# By the number of enum bpf_map_type: the class, and whether it takes a key's and a value's type.
CLASSES = {
    **dict.fromkeys((1, 9, 18, 19, 25), ("HashMap", True, True)),
    **dict.fromkeys((5, 10, 21), ("PerCpuHashMap", True, True)),
    2: ("ArrayMap", False, True),
    6: ("PerCpuArrayMap", False, True),
    **dict.fromkeys((22, 23), ("QueueMap", False, True)),
    30: ("BloomFilter", False, True),
    11: ("TrieMap", False, True),
    **dict.fromkeys((24, 28, 29, 32), ("StorageMap", False, True)),
    13: ("HashOfMaps", True, False),
    12: ("ArrayOfMaps", False, False),
    7: ("StackTraceMap", False, False),
    **dict.fromkeys((3, 8, 14, 15, 16, 17, 20), ("DescriptorMap", False, False)),
}
# Those that can be given a dict of a struct's fields.
WITH_FIELDS = {"HashMap", "PerCpuHashMap", "ArrayMap", "PerCpuArrayMap", "QueueMap"}


def map_annotation(layout: MapLayout, annotator: Annotator) -> str:
    """Return the type of a map: ``HashMap[int, Count]``; rings and unknown ones are BpfMap."""
    name, keyed, valued = CLASSES.get(layout.type, ("BpfMap", False, False))
    asked = ((keyed, "key", layout.key), (valued, "value", layout.value))
    parts = [(each, f"{layout.name}_{what}") for taken, what, each in asked if taken]
    if name in WITH_FIELDS and any(_has_struct(each) for each, _ in parts):
        types = [
            text
            for each, inside in parts
            for text in (_read(annotator, each, inside), _fields(annotator, each, inside))
        ]
        return f"{annotator.use(f'Struct{name}')}[{', '.join(types)}]"
    if not parts:
        return annotator.use(name)
    types = [_read(annotator, each, inside) for each, inside in parts]
    return f"{annotator.use(name)}[{', '.join(types)}]"


def _has_struct(layout: TypeLayout | None) -> bool:
    while isinstance(layout, ArrayLayout):
        layout = layout.element
    return isinstance(layout, StructLayout)


def _read(annotator: Annotator, layout: TypeLayout | None, inside: str) -> str:
    # Of what no type is known both sides are bytes.
    return "bytes" if layout is None else annotator.value(layout, inside)


def _fields(annotator: Annotator, layout: TypeLayout | None, inside: str) -> str:
    if layout is None or not _has_struct(layout):
        return annotator.use("NoReturn")
    return annotator.written(layout, inside)
