"""Declaring an event: a class with annotations, named after a C struct."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, ClassVar, TypeVar, get_origin

from kerneltrace_core.btf.layout import StructLayout, TypeLayout
from kerneltrace_core.errors import EventLayoutError
from kerneltrace_core.events.check import check_fields
from kerneltrace_core.events.classes import make_class
from kerneltrace_core.events.decoding import Decoding
from kerneltrace_core.events.engine import KernelEvent

__all__ = ["Declared", "declared_of", "kernel_event"]

T = TypeVar("T")


def kernel_event(struct: str, *, partial: bool = False) -> Callable[[type[T]], type[T]]:
    """Declare the decorated class as the events of a C struct.

    A session checks its annotations against the object, field by field: ``u32`` and the like must
    be what they say, ``int``, ``str``, ``bytes``, ``float`` and ``bool`` take size and sign from
    the object. A C name that Python reserves has a trailing ``_``. ``partial``: the struct may
    have fields that are not declared. The class may have methods, and should derive from
    KernelEvent: type checkers then know what all events have.
    """
    caller = sys._getframe(1).f_locals

    def declare(cls: type[T]) -> type[T]:
        made: Any = _rebuild(cls)
        # Names of a module are looked up late; those of a function are gone by then.
        names = dict(caller) if "<locals>" in cls.__qualname__ else {}
        made._shape_ = made._declared_ = Declared(made, struct, names, partial=partial)
        return made  # type: ignore[no-any-return]

    return declare


class Declared:
    """What ``kernel_event()`` was told about a class. Immutable; thread-safe."""

    def __init__(
        self, cls: type[KernelEvent], struct: str, names: Mapping[str, Any], *, partial: bool
    ) -> None:
        self.cls, self.struct, self.partial = cls, struct, partial
        self._names = names
        self._bound: dict[StructLayout, type[KernelEvent]] = {}
        self._binding = threading.RLock()  # of one layout there is one class

    def bind(self, layout: StructLayout) -> type[KernelEvent]:
        """Return the subclass whose fields are where this layout has them: the same each time.

        Raises EventLayoutError where the two differ.
        """
        with self._binding:
            made = self._bound.get(layout)
            if made is None:
                name = self.cls.__name__
                fields = check_fields(name, self.annotations(), layout, partial=self.partial)
                maker = (restore_declared, self.cls, layout)
                made = self._bound[layout] = make_class(name, self.cls, layout, fields, maker)
            return made

    def annotations(self) -> dict[str, Any]:
        """Return the fields that the class and its bases declare.

        Raises EventLayoutError for an annotation that cannot be evaluated.
        """
        found: dict[str, Any] = {}
        for cls in reversed(self.cls.__mro__):
            if cls in (KernelEvent, object):
                continue
            names = {**vars(cls), **self._names}
            try:
                own = inspect.get_annotations(cls, locals=names, eval_str=True)
            except Exception as error:
                raise EventLayoutError(
                    f"check event {self.cls.__name__}: an annotation cannot be evaluated: {error}"
                ) from error
            found.update((name, each) for name, each in own.items() if not _of_class(each))
        return found

    def fit(self, layout: TypeLayout, bits: int) -> Decoding | None:  # noqa: ARG002
        """Fit as a nested struct whose fields fit."""
        if not isinstance(layout, StructLayout):
            return None
        return Decoding("n", layout.size, convert=self.bind(layout))

    def describe(self) -> str:
        """Return the struct's name."""
        return f"struct {self.struct}"


def declared_of(cls: type) -> Declared | None:
    """Return what was declared of this very class, or of the one that it was bound from."""
    bound = "_reduce_" in vars(cls)
    declared = getattr(cls, "_declared_", None) if bound else vars(cls).get("_declared_")
    return declared if isinstance(declared, Declared) else None


def restore_declared(
    cls: type[KernelEvent], layout: StructLayout, data: bytes, origin: int
) -> KernelEvent:
    """Make an event again that was pickled."""
    declared = declared_of(cls)
    if declared is None:
        raise EventLayoutError(f"make {cls.__name__}: it is not declared by kernel_event() here")
    return declared.bind(layout).from_bytes(data, origin)


def _of_class(annotation: object) -> bool:
    return annotation is ClassVar or get_origin(annotation) is ClassVar


def _rebuild(cls: type) -> type:
    """Return the class again, as a KernelEvent without a ``__dict__``."""
    namespace = {
        name: each for name, each in vars(cls).items() if name not in ("__dict__", "__weakref__")
    }
    namespace.setdefault("__slots__", ())
    bases = tuple(base for base in cls.__bases__ if base is not object)
    if not issubclass(cls, KernelEvent):
        bases = (*bases, KernelEvent)
    made = type(cls)(cls.__name__, bases, namespace)
    for value in namespace.values():
        for function in (value.fget, value.fset) if isinstance(value, property) else (value,):
            _rebind_super(function, cls, made)
    return made


def _rebind_super(method: object, old: type, new: type) -> None:
    """Let ``super()`` and ``__class__`` in a method mean the new class."""
    function = getattr(method, "__func__", method)
    if isinstance(function, FunctionType) and "__class__" in function.__code__.co_freevars:
        cells = function.__closure__ or ()
        cell = cells[function.__code__.co_freevars.index("__class__")]
        if cell.cell_contents is old:
            cell.cell_contents = new
