"""The base of all events: an immutable copy of one record's bytes, read through its fields."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn, TypeVar

from kerneltrace_core.errors import OptionError

__all__ = ["KernelEvent"]

E = TypeVar("E", bound="KernelEvent")


class KernelEvent:
    """Be one record of a ring. Immutable, hashable, thread-safe; pickles.

    Two are equal if they are of one class and of the same bytes. Each carries its own copy, so
    that keeping one keeps nothing else. Classes are made from an object's BTF.

    ``origin``: the CPU for records of a perf buffer, else 0.
    """

    __slots__ = ("_data", "origin")

    _data: bytes
    origin: int
    _size_: ClassVar[int]
    _exact_: ClassVar[bool]
    _fields_: ClassVar[tuple[str, ...]]

    def __new__(cls: type[E], *_: object, **__: object) -> E:
        """Refuse: an event is what the kernel sent."""
        raise TypeError(f"make {cls.__name__}: events come from a stream or from from_bytes()")

    @classmethod
    def from_bytes(cls: type[E], data: bytes | bytearray | memoryview, origin: int = 0) -> E:
        """Make an event of a record's bytes.

        Raises OptionError when their number is not the struct's, TypeError when the class knows
        no layout yet.
        """
        size, exact = cls._layout()
        data = bytes(memoryview(data))
        if not 0 <= origin <= 0xFFFFFFFF:
            raise OptionError(f"make {cls.__name__}: origin {origin} is not of 32 bits")
        if len(data) != size if exact else len(data) < size:
            raise OptionError(
                f"make {cls.__name__}: {len(data)} bytes, not {size}{'' if exact else ' or more'}"
            )
        return cls._make(data, origin)

    @classmethod
    def _layout(cls) -> tuple[int, bool]:
        size: Any
        try:
            size, exact = cls._size_, cls._exact_
        except AttributeError:
            raise TypeError(
                f"make {cls.__name__}: its layout is not known (a session binds it to an object)"
            ) from None
        if not isinstance(size, int) or size < 0:
            raise TypeError(f"make {cls.__name__}: a layout of {size!r} bytes")
        return size, bool(exact)

    @classmethod
    def _make(cls: type[E], data: bytes, origin: int) -> E:
        event = object.__new__(cls)
        object.__setattr__(event, "_data", data)
        object.__setattr__(event, "origin", origin)
        return event

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name; nested events become dicts too."""
        return {name: _plain(getattr(self, name)) for name in type(self)._fields_}

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"change {type(self).__name__}: events are immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"change {type(self).__name__}: events are immutable")

    def __bytes__(self) -> bytes:
        return self._data

    def __eq__(self, other: object) -> bool:
        return self._data == other._data if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._data)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in type(self)._fields_)
        return f"{type(self).__name__}({shown})"

    def __copy__(self: E) -> E:
        return self

    def __deepcopy__(self: E, memo: object) -> E:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        # Classes made from BTF are in no module: what made them can make them again.
        function, *arguments = getattr(type(self), "_reduce_", None) or (type(self).from_bytes,)
        return function, (*arguments, self._data, self.origin)


def _plain(value: Any) -> Any:
    if isinstance(value, KernelEvent):
        return value.as_dict()
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value
