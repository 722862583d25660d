"""The kinds of types in BTF, each as the format has it: references are type ids."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Array",
    "BtfType",
    "DataSection",
    "DeclTag",
    "Enum",
    "Float",
    "Forward",
    "Function",
    "FunctionProto",
    "Int",
    "Member",
    "Modifier",
    "Pointer",
    "SectionVariable",
    "Struct",
    "TypeTag",
    "Typedef",
    "Variable",
    "Void",
]


@dataclass(frozen=True)
class BtfType:
    """Any type; ``name`` is "" where it has none. Immutable, as all of its kinds."""

    name: str


@dataclass(frozen=True)
class Void(BtfType):
    """Type id 0."""

    name: str = "void"


@dataclass(frozen=True)
class Int(BtfType):
    """An integer of ``size`` bytes, of which ``bits`` from ``bit_offset`` on are used."""

    size: int
    bits: int
    signed: bool
    char: bool
    bool_: bool
    bit_offset: int = 0


@dataclass(frozen=True)
class Pointer(BtfType):
    """A pointer to ``target``."""

    target: int


@dataclass(frozen=True)
class Array(BtfType):
    """An array; ``count`` 0 of a flexible one. ``index`` is the type of its index."""

    element: int
    index: int
    count: int


@dataclass(frozen=True)
class Member:
    """A member; ``bit_size`` 0: no bit field (or one of the old kind, see Int.bits)."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int


@dataclass(frozen=True)
class Struct(BtfType):
    """A struct or union of ``size`` bytes."""

    size: int
    members: tuple[Member, ...]
    is_union: bool


@dataclass(frozen=True)
class Enum(BtfType):
    """An enum of 1, 2, 4 or 8 bytes.

    ``cut``: of more than 4 bytes, but described in 32 bits each, as before ENUM64.
    """

    size: int
    signed: bool
    values: tuple[tuple[str, int], ...]
    cut: bool = False


@dataclass(frozen=True)
class Forward(BtfType):
    """A struct or union of which only the name is known."""

    is_union: bool


@dataclass(frozen=True)
class Typedef(BtfType):
    """Another name for ``target``."""

    target: int


@dataclass(frozen=True)
class Modifier(BtfType):
    """const, volatile or restrict: nothing that changes a layout."""

    target: int


@dataclass(frozen=True)
class Function(BtfType):
    """A function; ``linkage`` 0: static, 1: global, 2: extern."""

    target: int
    linkage: int


@dataclass(frozen=True)
class FunctionProto(BtfType):
    """Result and (name, type) of each parameter; a last one of type 0 stands for ``...``."""

    result: int
    parameters: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Variable(BtfType):
    """A global variable; ``linkage`` 0: static, 1: global, 2: extern."""

    target: int
    linkage: int


@dataclass(frozen=True)
class SectionVariable:
    """Where a variable is in its section, in bytes; 0 until an object is linked."""

    type_id: int
    offset: int
    size: int


@dataclass(frozen=True)
class DataSection(BtfType):
    """A section of variables; ``size`` 0 until an object is linked."""

    size: int
    variables: tuple[SectionVariable, ...]


@dataclass(frozen=True)
class Float(BtfType):
    """A floating point number."""

    size: int


@dataclass(frozen=True)
class DeclTag(BtfType):
    """``btf_decl_tag``: ``component`` -1: of the whole, else of a member or parameter."""

    target: int
    component: int


@dataclass(frozen=True)
class TypeTag(BtfType):
    """``btf_type_tag``: a name beside a pointer's type."""

    target: int
