"""What an annotation of a declared field asks of the C type."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, get_args, get_origin

from kerneltrace_core.btf.layout import ArrayLayout, Scalar, TypeLayout
from kerneltrace_core.events.classes import decode
from kerneltrace_core.events.decoding import Decoding, decode_array, decode_scalar, raw
from kerneltrace_core.events.devices import Device
from kerneltrace_core.events.scalars import Address, Chars, KernelDevice, Shape

__all__ = ["Array", "EnumClass", "Offset", "Plain", "offset_of", "shape_of"]


@dataclass(frozen=True)
class Offset:
    """The byte at which a field must begin: ``Annotated[u32, Offset(24)]``. Checked, never used."""

    byte: int


@dataclass(frozen=True)
class Array:
    """Ask for an array: ``Annotated[tuple[int, ...], Array(u32, 4)]``.

    ``element`` is an annotation, also another Array. ``count`` None: any; 0: a flexible one.
    """

    element: Any
    count: int | None = None

    def fit(self, layout: TypeLayout, bits: int) -> Decoding | None:  # noqa: ARG002
        """Fit an array whose elements fit."""
        if not isinstance(layout, ArrayLayout) or self.count not in (None, layout.count):
            return None
        inner = shape_of(self.element).fit(layout.element, 0)
        return decode_array(layout, lambda _: inner) if inner else None

    def describe(self) -> str:
        """Return ``4 x (2 bytes, unsigned)``."""
        count = "any number" if self.count is None else self.count or "the rest"
        return f"{count} x ({shape_of(self.element).describe()})"


@dataclass(frozen=True)
class EnumClass:
    """Ask for a number that is shown by an enum; of an IntEnum unknown values stay int."""

    made: type[IntEnum] | type[IntFlag]

    def fit(self, layout: TypeLayout, bits: int) -> Decoding | None:  # noqa: ARG002
        """Fit every whole number."""
        if not isinstance(layout, Scalar) or layout.kind == "float":
            return None
        if issubclass(self.made, IntFlag):
            return decode_scalar(layout)._replace(convert=self.made)
        members: dict[Any, Any] = {member.value: member for member in self.made}
        return decode_scalar(layout)._replace(convert=members)

    def describe(self) -> str:
        """Return the class by its name."""
        return f"a number for {self.made.__name__}"


@dataclass(frozen=True)
class Plain:
    """Ask for a Python type; size and sign are the object's."""

    kind: type

    def fit(self, layout: TypeLayout, bits: int) -> Decoding | None:
        """Fit what the type can hold."""
        if self.kind is str:
            return Chars().fit(layout, bits)
        if self.kind is bytes:
            return None if bits else raw(layout)
        if self.kind is object:
            return decode(layout)
        if not isinstance(layout, Scalar) or (self.kind is float) != (layout.kind == "float"):
            return None
        decoding = decode_scalar(layout)
        if self.kind is bool:
            return Decoding("?", layout.size) if decoding.kind in "us?" else None
        if decoding.kind == "?":
            decoding = decoding._replace(kind="u")
        # An int that is wider than a machine's is made by a function, and an enum by a table.
        return decoding if callable(decoding.convert) else decoding._replace(convert=None)

    def describe(self) -> str:
        """Return the type's name."""
        return "anything" if self.kind is object else self.kind.__name__


PLAIN: dict[Any, Shape] = {
    **{kind: Plain(kind) for kind in (int, str, bytes, float, bool, object)},
    Any: Plain(object),
    IPv4Address: Address(4, IPv4Address),
    IPv6Address: Address(16, IPv6Address),
    Device: KernelDevice(),
}


def shape_of(annotation: Any) -> Shape:
    """Return what an annotation asks for; TypeError for one that no field can have."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extras = get_args(annotation)
        return shape_of(next((extra for extra in extras if hasattr(extra, "fit")), inner))
    if origin is tuple and get_args(annotation)[1:] == (...,):
        return Array(get_args(annotation)[0])
    if origin is None and isinstance(annotation, type):
        # What @kernel_event declared knows its own shape.
        declared: Shape | None = vars(annotation).get("_shape_")
        if declared is not None:
            return declared
        if issubclass(annotation, IntEnum | IntFlag):
            return EnumClass(annotation)
    elif hasattr(annotation, "fit"):
        return annotation  # type: ignore[no-any-return]
    try:
        return PLAIN[annotation]
    except (KeyError, TypeError):
        raise TypeError(f"{annotation!r} is no type of a field") from None


def offset_of(annotation: Any) -> int | None:
    """Return the offset that an annotation asks for, if it does."""
    extras = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((extra.byte for extra in extras if isinstance(extra, Offset)), None)
