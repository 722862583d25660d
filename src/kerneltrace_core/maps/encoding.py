"""Python values as the bytes of a C type."""

from __future__ import annotations

import math
import operator
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kerneltrace_core.btf.layout import (
    ArrayLayout,
    FieldLayout,
    Scalar,
    StructLayout,
    TypeLayout,
    c_name,
)
from kerneltrace_core.errors import OptionError
from kerneltrace_core.events.naming import field_names

__all__ = ["Encode", "encoder", "raw_bytes"]

Encode = Callable[[Any], bytes]

# What the kernel keeps for itself inside of a value: user space writes zeroes, which it ignores.
KERNELS_OWN = frozenset(
    (
        "bpf_spin_lock",
        "bpf_res_spin_lock",
        "bpf_timer",
        "bpf_wq",
        "bpf_task_work",
        "bpf_list_head",
        "bpf_list_node",
        "bpf_rb_root",
        "bpf_rb_node",
        "bpf_refcount",
    )
)


def encoder(layout: TypeLayout) -> Encode:
    """Return the function that makes a type's bytes; it raises OptionError for what does not fit.

    Numbers and enums take ints, an enum its members' names too; ``char[N]`` str; other arrays as
    many values as they have; structs a mapping of all their fields or a sequence in their order,
    unions one of their fields, or several that agree. Everything takes bytes of the right number,
    events, and an address of ``ipaddress`` where it fits, in network byte order.
    """
    if isinstance(layout, Scalar):
        return _scalar(layout)
    if isinstance(layout, ArrayLayout):
        return _array(layout)
    return _struct(layout)


def raw_bytes(value: Any, size: int, what: str) -> bytes | None:
    """Return a value that is bytes already; None if it is of another kind."""
    data: bytes
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    elif isinstance(packed := getattr(value, "packed", None), bytes):  # an address
        data = packed
    elif hasattr(type(value), "__bytes__") and hasattr(type(value), "_fields_"):  # an event
        data = bytes(value)
    else:
        return None
    if len(data) != size:
        raise OptionError(f"{len(data)} bytes given, {what} has {size}")
    return data


def _scalar(layout: Scalar) -> Encode:
    if layout.kind == "float" and layout.size in (4, 8):
        return _float(layout)
    order = "big" if layout.big_endian else sys.byteorder
    size, signed, what = layout.size, layout.signed, c_name(layout)
    least = -(1 << 8 * size - 1) if signed else 0
    most = (1 << 8 * size - signed) - 1
    if layout.kind == "bool":
        most = 1
    named = dict(layout.values)

    def encode(value: Any) -> bytes:
        if isinstance(value, str) and value in named:
            value = named[value]
        try:
            number = operator.index(value)
        except TypeError:
            data = raw_bytes(value, size, what)
            if data is not None:
                return data
            if named and isinstance(value, str):
                raise OptionError(
                    f"{value!r} is not one of {', '.join(named)} (of enum {what})"
                ) from None
            raise OptionError(f"{value!r} is no number, {what} takes one, or bytes") from None
        if not least <= number <= most:
            raise OptionError(f"{number} does not fit {what} ({least} to {most})")
        return number.to_bytes(size, order, signed=signed)

    return encode


def _float(layout: Scalar) -> Encode:
    code = "=f" if layout.size == 4 else "=d"
    what = c_name(layout)

    def encode(value: Any) -> bytes:
        data = raw_bytes(value, layout.size, what)
        if data is not None:
            return data
        if isinstance(value, str) or not hasattr(type(value), "__float__"):
            raise OptionError(f"{value!r} is no number, {what} takes one, or bytes")
        try:
            return struct.pack(code, float(value))
        except OverflowError:
            assert math.isfinite(value)
            raise OptionError(f"{value!r} does not fit {what}") from None

    return encode


def _array(layout: ArrayLayout) -> Encode:
    what, size, count = c_name(layout), layout.size, layout.count
    element = encoder(layout.element)
    is_text = isinstance(layout.element, Scalar) and layout.element.kind == "char"
    takes = "str, or bytes" if is_text else f"{count} values, or bytes"

    def encode(value: Any) -> bytes:
        if is_text and isinstance(value, str):
            try:
                text = value.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise OptionError(f"{value!r} is no text: {error.reason}") from None
            if len(text) > size:
                raise OptionError(f"{value!r} has {len(text)} bytes, {what} has {size}")
            if b"\0" in text:
                raise OptionError(f"{value!r} has a NUL, which ends {what} (give it as bytes)")
            return text.ljust(size, b"\0")
        data = raw_bytes(value, size, what)
        if data is not None:
            return data
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise OptionError(f"{value!r} is not what {what} takes: {takes}")
        values = list(value)
        if len(values) != count:
            raise OptionError(f"{len(values)} values given, {what} has {count}")
        encoded = []
        for index, each in enumerate(values):
            try:
                encoded.append(element(each))
            except OptionError as error:
                raise OptionError(f"[{index}]: {error}") from None
        return b"".join(encoded)

    return encode


def _struct(layout: StructLayout) -> Encode:
    members = _Members(layout)
    what, size = c_name(layout), layout.size
    order = [each for each in layout.fields() if not _is_kernels(each.type)]

    def encode(value: Any) -> bytes:
        data = raw_bytes(value, size, what)
        if data is not None:
            return data
        if not isinstance(value, Mapping):
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise OptionError(
                    f"{value!r} is not what {what} takes: its fields as a mapping or a sequence, "
                    "an event, or bytes"
                )
            values = list(value)
            if layout.is_union or len(values) != len(order):
                raise OptionError(
                    f"{len(values)} values given, {what} has {len(order)} fields "
                    f"({', '.join(each.name for each in order)})"
                )
            value = {field.name: each for field, each in zip(order, values, strict=True)}
        given = dict(value)
        buffer = bytearray(size)
        members.store(given, buffer, 0)
        if given:
            raise OptionError(f"{what} has no field {', '.join(map(repr, given))}")
        return bytes(buffer)

    return encode


def _is_kernels(layout: TypeLayout) -> bool:
    return isinstance(layout, StructLayout) and layout.name in KERNELS_OWN


class _Members:
    """Write the members of a struct, those of anonymous ones at their place."""

    def __init__(
        self, layout: StructLayout, spellings: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self._layout = layout
        # An anonymous member's fields are named among those of the whole struct.
        self._spellings = _spellings(layout) if spellings is None else spellings
        self._what = c_name(layout)
        self._members: list[tuple[FieldLayout, Encode | _Members]] = []
        for each in layout.members:
            if each.name:
                self._members.append((each, encoder(each.type)))
            elif isinstance(each.type, StructLayout):
                self._members.append((each, _Members(each.type, self._spellings)))

    def names(self) -> set[str]:
        """Return what a mapping may call the members."""
        return {name for field in self._layout.fields() for name in self._spellings[field.name]}

    def store(self, given: dict[str, Any], buffer: bytearray, base: int) -> None:
        """Take what belongs here out of ``given`` and write it at ``base``."""
        if self._layout.is_union:
            self._store_union(given, buffer, base)
            return
        for field, write in self._members:
            self._store_member(field, write, given, buffer, base)

    def _store_member(
        self,
        field: FieldLayout,
        write: Encode | _Members,
        given: dict[str, Any],
        buffer: bytearray,
        base: int,
    ) -> None:
        if isinstance(write, _Members):
            write.store(given, buffer, base + field.offset)
            return
        name = next((name for name in self._spellings[field.name] if name in given), None)
        if name is None:
            if _is_kernels(field.type) or not field.type.size:
                return
            raise OptionError(f"field {field.name} of {self._what} is not given")
        try:
            _put(field, write, given.pop(name), buffer, base)
        except OptionError as error:
            raise OptionError(f"field {field.name}: {error}") from None

    def _store_union(self, given: dict[str, Any], buffer: bytearray, base: int) -> None:
        size = self._layout.size
        merged: list[tuple[str, int, bytearray]] = []
        for field, write in self._members:
            known = self._spellings
            named = write.names() if isinstance(write, _Members) else set(known[field.name])
            if not named & set(given):
                continue
            alone = bytearray(size)
            self._store_member(field, write, given, alone, 0)
            merged.append((field.name or self._what, field.type.size, alone))
        if not merged:
            raise OptionError(f"no field of {self._what} is given")
        name, _, widest = max(merged, key=lambda each: each[1])
        for other, length, alone in merged:
            if alone[:length] != widest[:length]:
                raise OptionError(
                    f"fields {name} and {other} of {self._what} share their bytes, and do not agree"
                )
        buffer[base : base + size] = widest


def _spellings(layout: StructLayout) -> dict[str, tuple[str, ...]]:
    """Return what each field of a struct may be called, by its C name."""
    names = [field.name for field in layout.fields()]
    pairs = zip(names, field_names(names), strict=True)
    return {name: (name,) if mine == name else (name, mine) for name, mine in pairs}


def _put(field: FieldLayout, write: Encode, value: Any, buffer: bytearray, base: int) -> None:
    start = base + field.offset
    if not field.bit_size:
        data = write(value)
        buffer[start : start + len(data)] = data
        return
    scalar = field.type
    signed = isinstance(scalar, Scalar) and scalar.signed
    if isinstance(scalar, Scalar) and isinstance(value, str):
        value = dict(scalar.values).get(value, value)
    try:
        number = operator.index(value)
    except TypeError:
        raise OptionError(f"{value!r} is no number, a bit field takes one") from None
    least = -(1 << field.bit_size - 1) if signed else 0
    most = (1 << field.bit_size - signed) - 1
    if not least <= number <= most:
        raise OptionError(f"{number} does not fit {field.bit_size} bits ({least} to {most})")
    size = (field.bit_offset + field.bit_size + 7) // 8
    little = sys.byteorder == "little"
    shift = field.bit_offset if little else 8 * size - field.bit_offset - field.bit_size
    mask = (1 << field.bit_size) - 1
    storage = int.from_bytes(buffer[start : start + size], sys.byteorder)
    storage = storage & ~(mask << shift) | (number & mask) << shift
    buffer[start : start + size] = storage.to_bytes(size, sys.byteorder)
