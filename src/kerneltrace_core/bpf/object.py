"""BpfObject: one ELF object from open to close, with every link that it made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from kerneltrace_core._native import attach as native_attach
from kerneltrace_core._native import lib
from kerneltrace_core._native.held import LibbpfLink
from kerneltrace_core.bpf.program import ProgramFacts
from kerneltrace_core.errors import ClosedError, LoadError

__all__ = ["BpfObject", "builtin_object"]

OBJECTS = Path(__file__).parent.parent / "_objects"


def builtin_object(name: str) -> bytes:
    """Return the bytes of an object that ships in the package, by its name without ending.

    Raises LoadError if the installation has none of that name.
    """
    # Not importlib.resources: it takes 8 ms to import, and an extension module runs from no zip.
    path = f"{OBJECTS}/{name}.bpf.o"
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as cause:
        raise LoadError(
            f"read built-in BPF object {name}: {cause.strerror} (reinstall kerneltrace)",
            errno=cause.errno,
        ) from cause


class BpfObject:
    """An object that is opened, configured, loaded, attached and closed, in this order.

    Owns descriptors: close it, or use it in ``with``. Not thread-safe; ``close`` may come from
    another thread, or a signal handler, at any time: what is ``in_use`` is freed by its last user.
    In a child after fork it is the parent's and must be left alone, see ``abandon``.

    Least kernel 5.5 (BTF); what the programs need may be more. Raises LoadError with libbpf's
    lines, PrivilegeError when the kernel refuses this process.
    """

    def __init__(self, data: bytes, name: str, *, btf_path: str | None = None) -> None:
        self.name = name
        # Reentrant: a signal handler may close it in the midst of anything.
        self._lock = threading.RLock()
        self._users = 0
        self._object = lib.open_object(data, name, btf_path)
        self._stack = ExitStack()
        # Looking up a target may open the BTF of kernel modules, which libbpf keeps until a load.
        self._keeps_modules = False
        self._stack.callback(self._close_object)
        self._programs = dict(lib.programs(self._object))
        self._attach_targets: dict[str, str] = {}
        self._links: dict[str, LibbpfLink] = {}
        self.closed = False

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep its memory and descriptors for the block, even if it is closed meanwhile.

        Raises ClosedError.
        """
        with self._lock:
            self._check_open()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self.closed and not self._users:
                    self._free()

    # ---- what is in it ------------------------------------------------------------

    def programs(self) -> tuple[ProgramFacts, ...]:
        """Return what the object says about its programs, in the order of their sections."""
        with self.in_use():
            return tuple(self.program(name) for name in self._programs)

    def program(self, name: str) -> ProgramFacts:
        """Return what the object says about a program. Raises KeyError if it has none so named."""
        with self.in_use():
            facts = native_attach.program_facts(self._programs[name])
            return ProgramFacts(name, *facts, self._attach_targets.get(name))

    # ---- before load ------------------------------------------------------------

    def deselect(self, program: str) -> None:
        """Leave a program out at load."""
        self._check_open()
        lib.set_autoload(self._programs[program], False)

    def set_attach_type(self, program: str, attach_type: int) -> None:
        """Say before load how a program will be attached, by the kernel's number."""
        self._check_open()
        native_attach.set_attach_type(self._programs[program], attach_type)

    def set_attach_target(self, program: str, target: str) -> None:
        """Say before load which kernel function, tracepoint or hook a program is for.

        Reads the kernel's BTF, once for the object. Raises AttachError, errno ESRCH if it has none
        of that name.
        """
        self._check_open()
        self._keeps_modules = True
        native_attach.set_attach_target(self._programs[program], target)
        self._attach_targets[program] = target

    def select(self, programs: set[str]) -> None:
        """Load only these programs. Raises LoadError for a name that the object has not."""
        if missing := programs - set(self._programs):
            raise LoadError(f"select programs of {self.name}: no program {', '.join(missing)}")
        for name, program in self._programs.items():
            lib.set_autoload(program, name in programs)

    def set_variable(self, name: str, value: int, section: str = ".rodata") -> None:
        """Give a global variable its value before load."""
        offset, size = lib.variable(self._object, section, name)
        memory = lib.initial_value(lib.find_map(self._object, section))
        memory[offset : offset + size] = value.to_bytes(size, "little")

    def initial_data(self, section: str) -> memoryview:
        """Return the memory of a data section (``.rodata``) as load will find it, to be changed."""
        self._check_open()
        return lib.initial_value(lib.find_map(self._object, section))

    def data_bytes(self, section: str) -> int:
        """Return the size of a data section in bytes."""
        with self.in_use():
            return len(self.initial_data(section))

    def resize_map(self, name: str, entries: int) -> None:
        """Set a map's number of entries."""
        lib.set_max_entries(lib.find_map(self._object, name), entries)

    def omit_map(self, name: str) -> None:
        """Do not create a map: no program that is loaded uses it."""
        lib.set_autocreate(lib.find_map(self._object, name), False)

    def use_map(self, name: str, fd: int) -> None:
        """Take an existing map instead of creating one; the caller still closes its descriptor."""
        lib.reuse_map_fd(lib.find_map(self._object, name), fd)

    # ---- load, attach -------------------------------------------------------------

    def load(self) -> None:
        """Create the maps and load the selected programs; blocks for tens of milliseconds."""
        self._check_open()
        self._keeps_modules = False
        lib.load_object(self._object, self.name)

    def attach(self, program: str) -> None:
        """Attach a loaded program to the hook that its section names."""
        self._check_open()
        act = f"attach program {program}"
        self._links[program] = native_attach.attach_by_section(self._programs[program], act)

    def attach_by_section(self, program: str) -> LibbpfLink:
        """Attach a loaded program as libbpf reads its section; the link is the caller's.

        For what has no way of its own here; the object knows nothing of the link.
        """
        with self.in_use():
            return native_attach.attach_by_section(self._programs[program])

    def detach(self, program: str) -> None:
        """Detach a program; one that is not attached is left alone."""
        link = self._links.pop(program, None)
        if link is not None:
            native_attach.detach(link)

    def take_links(self) -> dict[str, LibbpfLink]:
        """Return the links by program; they are the caller's from now on, and may outlive this."""
        links, self._links = self._links, {}
        return links

    @property
    def attached(self) -> tuple[str, ...]:
        """Names of the programs that are attached, in the order of attachment."""
        return tuple(self._links)

    def program_fd(self, program: str) -> int:
        """Return the descriptor of a loaded program; the object keeps it."""
        with self.in_use():
            return lib.program_fd(self._programs[program])

    def map_fd(self, name: str) -> int:
        """Return the descriptor of a map; the object keeps it."""
        with self.in_use():
            return lib.map_fd(lib.find_map(self._object, name))

    # ---- end ------------------------------------------------------------------------

    def close(self) -> None:
        """Detach everything, newest first, and free the object. May be repeated.

        Does not wait for who uses it: that one frees it then.
        """
        with self._lock:
            if self.closed:
                return
            self.closed = True
            for program in reversed(self.attached):
                self.detach(program)
            if not self._users:
                self._free()

    def _free(self) -> None:
        self._stack.close()

    def _close_object(self) -> None:
        if self._keeps_modules:
            lib.close_unloaded(self._object)
        else:
            lib.close_object(self._object)

    def abandon(self) -> None:
        """In a forked child: drop this process's references, and touch nothing else.

        The parent's programs stay attached.
        """
        # Another thread of the parent may have held it at the fork.
        self._lock = threading.RLock()
        if self.closed and not self._users:
            return
        self.closed = True
        self._users = 0
        for link in self._links.values():
            link.end()
        self._links.clear()
        self._keeps_modules = False
        self._free()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"use BPF object {self.name}: it is closed")
