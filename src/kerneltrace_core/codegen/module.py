"""The whole of a generated module."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from kerneltrace_core.btf.layout import ObjectLayout
from kerneltrace_core.codegen.annotate import Annotator
from kerneltrace_core.codegen.choose import choose
from kerneltrace_core.codegen.events_source import enum_source, event_source
from kerneltrace_core.codegen.fields_source import fields_source
from kerneltrace_core.codegen.names import BUILTINS, Names
from kerneltrace_core.codegen.skeleton_source import Skeleton

__all__ = ["IMPORTS", "generate"]

# Where generated modules find what they use: in what is public.
IMPORTS = {
    "collections.abc": ("Mapping", "Sequence"),
    "enum": ("IntEnum",),
    "pathlib": ("Path",),
    "typing": (
        "TYPE_CHECKING", "Annotated", "Any", "Final", "Literal", "NoReturn", "TypeAlias",
        "TypedDict", "cast",
    ),
    "kerneltrace_core": (
        "Array", "Bytes", "Chars", "KernelEvent", "Probe", "Session", "kernel_event",
        "be16", "be32", "be64", "f32", "f64",
        "s8", "s16", "s32", "s64", "u8", "u16", "u32", "u64",
    ),
}  # fmt: skip
# What only type checkers ask for.
TYPES = {
    "kerneltrace_core.maps": (
        "ArrayMap", "ArrayOfMaps", "BloomFilter", "BpfMap", "DescriptorMap", "HashMap",
        "HashOfMaps", "PerCpuArrayMap", "PerCpuHashMap", "QueueMap", "StackTraceMap",
        "StorageMap", "TrieMap",
    ),
    "kerneltrace_core.maps.struct_maps": (
        "StructArrayMap", "StructHashMap", "StructPerCpuArrayMap", "StructPerCpuHashMap",
        "StructQueueMap",
    ),
}  # fmt: skip
LIBRARY = "kerneltrace_core"


def generate(layout: ObjectLayout, file: str, structs: Iterable[str] = ()) -> str:
    """Return the source of a module for an object; ``file`` is its name, without a folder.

    The same object gives the same text, always. ``structs``: more C structs that are to be event
    classes. Raises OptionError for one that the object lacks, FormatError.
    """
    return _Module(layout, file, structs).source()


class _Module:
    """Write the blocks of a module, then the imports that they turned out to need."""

    def __init__(self, layout: ObjectLayout, file: str, structs: Iterable[str]) -> None:
        imported = [each for group in (IMPORTS, TYPES) for each in chain(*group.values())]
        self._layout = layout
        # It is part of the text, which a name must not end.
        self._file = re.sub(r"[^\w.+-]", "_", file)
        self._chosen = choose(layout, Names([*imported, *BUILTINS]), structs)
        self._annotator = Annotator(self._chosen)
        self._aliases: dict[str, str] = {}
        self._blocks: list[str] = []

    def source(self) -> str:
        chosen, annotator, aliases = self._chosen, self._annotator, self._aliases
        for name, enum in sorted(chosen.enums.items()):
            annotator.use("IntEnum")
            self._add(enum_source(name, enum))
        for name, struct in chosen.structs.items():
            # A session evaluates these annotations, so their aliases are there at runtime.
            self._add(event_source(name, struct, self._layout, annotator, aliases), evaluated=True)
        # Only the skeleton knows what is to be written, and comes after it.
        after: list[str] = []
        for block in Skeleton(self._file, self._layout, annotator, aliases).blocks():
            self._add(block, to=after)
        done: set[str] = set()
        while missing := chosen.written.keys() - done:
            for name in sorted(missing):
                done.add(name)
                self._add(fields_source(name, chosen, annotator, aliases))
        body = "".join(f"\n\n{block}" for block in [*self._blocks, *after])
        return "".join(f"{line}\n" for line in self._head()) + body

    def _add(
        self, lines: Iterable[str], *, evaluated: bool = False, to: list[str] | None = None
    ) -> None:
        blocks = self._blocks if to is None else to
        before = set(self._aliases)
        block = "".join(f"{line}\n" for line in lines)
        for hidden in sorted(self._aliases.keys() - before):
            alias = f"{self._aliases[hidden]}: {self._annotator.use('TypeAlias')} = {hidden}\n"
            if not evaluated:
                alias = f"if {self._annotator.use('TYPE_CHECKING')}:\n    {alias}"
            blocks.append(alias)
        blocks.append(block)

    def _head(self) -> Iterator[str]:
        used = self._annotator.used
        if used & set(chain(*TYPES.values())):
            used.add("TYPE_CHECKING")
        yield f'"""Events, maps and variables of {self._file}, by kerneltrace_core.codegen."""'
        yield "# Written by a program: do not edit, nor format."
        yield "# fmt: off"
        yield "# ruff: noqa"
        yield ""
        yield "from __future__ import annotations"
        for library in (False, True):
            lines = list(_imports(used, library=library))
            if lines:
                yield ""
                yield from lines
        types = [f"    {line}" for line in _from(TYPES, used)]
        if types:
            yield ""
            yield "if TYPE_CHECKING:"
            yield from types


def _imports(used: set[str], *, library: bool) -> Iterator[str]:
    group = {each: names for each, names in IMPORTS.items() if each.startswith(LIBRARY) == library}
    yield from _from(group, used)


def _from(group: Mapping[str, tuple[str, ...]], used: set[str]) -> Iterator[str]:
    for module, names in group.items():
        wanted = [name for name in names if name in used]
        if wanted:
            yield f"from {module} import {', '.join(wanted)}"
