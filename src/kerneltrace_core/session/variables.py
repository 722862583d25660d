"""An object's global variables: set before load, read and written while it runs."""

from __future__ import annotations

import difflib
import mmap
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from kerneltrace_core.btf.layout import VariableLayout
from kerneltrace_core.errors import ClosedError, MapError, OptionError
from kerneltrace_core.maps.codec import Codec

if TYPE_CHECKING:
    from kerneltrace_core.bpf.object import BpfObject
    from kerneltrace_core.bpf.program import Configurable

__all__ = ["MappedSections", "Memory", "Sections", "Variables", "encode_variable", "preset"]


class Memory(Protocol):
    """Bytes by offset."""

    def __getitem__(self, place: slice) -> bytes | bytearray:
        """Return some of them."""

    def __setitem__(self, place: slice, value: bytes) -> None:
        """Store some."""


class Sections(Protocol):
    """Where the variables of each section are."""

    def memory(self, layout: VariableLayout) -> Memory:
        """Return the memory of a variable's section."""

    def close(self) -> None:
        """Give it up; may be repeated."""


def _known(layouts: Mapping[str, VariableLayout], name: str) -> VariableLayout:
    try:
        return layouts[name]
    except KeyError:
        near = difflib.get_close_matches(str(name), layouts, 1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(layouts) or 'none'}"
        raise OptionError(f"variable {name}: the object has no such variable ({hint})") from None


def _encode(layout: VariableLayout, value: Any) -> bytes:
    try:
        encoded = Codec(layout.type).encode(value)
    except OptionError as error:
        raise OptionError(f"set variable {layout.name}: {error}") from None
    if len(encoded) != layout.size:
        raise OptionError(
            f"set variable {layout.name}: {len(encoded)} bytes given, it has {layout.size}"
        )
    return encoded


def encode_variable(
    layouts: Mapping[str, VariableLayout], name: str, value: Any
) -> tuple[VariableLayout, bytes]:
    """Return where a variable is, and a value's bytes. Raises OptionError."""
    layout = _known(layouts, name)
    return layout, _encode(layout, value)


def preset(
    opened: Configurable, layouts: Mapping[str, VariableLayout], name: str, value: Any
) -> None:
    """Give a variable its value in an object that is not loaded yet. Raises OptionError."""
    layout, encoded = encode_variable(layouts, name, value)
    memory = opened.initial_data(layout.section)
    memory[layout.offset : layout.offset + layout.size] = encoded


class Variables(MutableMapping[str, Any]):
    """Global variables of a loaded object by name, live in the kernel's own memory.

    Those of ``.rodata`` can be read, those of ``.data`` and ``.bss`` written too; a value is what
    the variable's C type says (int, bool, str of char[N], tuple of an array, event of a struct).
    No system call after the first use of a section. A value of up to eight bytes is stored in
    one piece, a longer one is not: BPF may see half of it. Raises OptionError for an unknown
    name or a wrong value, ClosedError after the session. Thread-safe.
    """

    def __init__(self, layouts: Mapping[str, VariableLayout], sections: Sections) -> None:
        self._layouts = layouts
        self._sections: Sections | None = sections

    def __getitem__(self, name: str) -> Any:
        layout = _known(self._layouts, name)
        with self._memory(layout) as memory:
            data = bytes(memory[layout.offset : layout.offset + layout.size])
        return Codec(layout.type).decode(data)

    def __setitem__(self, name: str, value: Any) -> None:
        layout = _known(self._layouts, name)
        if not layout.writable:
            raise OptionError(
                f"set variable {name}: it is in {layout.section}, which is frozen once loaded "
                "(give it in Session(variables=...), or take `const` off it)"
            )
        encoded = _encode(layout, value)
        with self._memory(layout) as memory:
            memory[layout.offset : layout.offset + layout.size] = encoded

    def __delitem__(self, name: str) -> None:
        raise OptionError(f"delete variable {name}: variables belong to the object")

    def __iter__(self) -> Iterator[str]:
        return iter(self._layouts)

    def __len__(self) -> int:
        return len(self._layouts)

    def __contains__(self, name: object) -> bool:
        return name in self._layouts

    @contextmanager
    def _memory(self, layout: VariableLayout) -> Iterator[Memory]:
        sections = self._sections
        try:
            if sections is not None:
                yield sections.memory(layout)
                return
        except (ClosedError, ValueError):  # mmap's word for what was closed meanwhile
            if self._sections is not None:
                raise
        raise ClosedError(f"use variable {layout.name}: its session is closed")

    def close(self) -> None:
        """Forget the memory. May be repeated."""
        sections, self._sections = self._sections, None
        if sections is not None:
            sections.close()


class MappedSections:
    """The data sections of a loaded object, mapped as they are used; closed with its session."""

    def __init__(self, opened: BpfObject) -> None:
        self._object = opened
        self._mapped: dict[str, mmap.mmap] = {}

    def memory(self, layout: VariableLayout) -> mmap.mmap:
        """Return the memory of a variable's section."""
        section = self._mapped.get(layout.section)
        if section is None:
            access = mmap.PROT_READ | (mmap.PROT_WRITE if layout.writable else 0)
            with self._object.in_use():
                size = self._object.data_bytes(layout.section)
                fd = self._object.map_fd(layout.section)
                try:
                    fresh = mmap.mmap(fd, size, prot=access)
                except OSError as error:
                    raise MapError(
                        f"map variables of {layout.section}: {error.strerror}", errno=error.errno
                    ) from None
            section = self._mapped.setdefault(layout.section, fresh)
        return section

    def close(self) -> None:
        """Unmap everything. May be repeated."""
        while self._mapped:
            self._mapped.popitem()[1].close()
