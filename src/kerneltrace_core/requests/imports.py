"""ImportWatch: hear of modules that are imported later than tracing starts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__all__ = ["ImportWatch"]


# Not an importlib.abc.MetaPathFinder: that module takes 2 ms to import, and adds nothing.
class ImportWatch:
    """Call ``imported()`` right after one of the named modules was imported.

    Libraries import what they need when they first need it: anyio its backend, in the first
    request that uses a thread. ``install`` and ``remove`` are idempotent; a module that another
    finder than the usual one provides is not heard of. Thread-safe as imports are.
    """

    def __init__(self, names: Iterable[str], imported: Callable[[], None]) -> None:
        self._names = frozenset(names)
        self._imported = imported

    def install(self) -> None:
        """Begin to watch, if one of the modules is still to come."""
        if self not in sys.meta_path and not self._names <= sys.modules.keys():
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Stop watching."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a watched module where it is found anyway, and hear of the end of its import."""
        if fullname not in self._names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        loader = spec.loader if spec is not None else None
        if loader is None or not hasattr(loader, "exec_module"):
            return None
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            # The module keeps its loader: it gets it back as it was.
            del loader.__dict__["exec_module"]
            execute(module)
            self._imported()

        loader.__dict__["exec_module"] = exec_module
        return spec
