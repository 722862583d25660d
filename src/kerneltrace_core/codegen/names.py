"""Python names for C names, each given once."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Iterable

from kerneltrace_core.btf.attributes import each_once
from kerneltrace_core.errors import FormatError

__all__ = [
    "BUILTINS",
    "Names",
    "attribute_name",
    "class_name",
    "field_name",
    "field_names",
    "member_name",
    "module_class_name",
    "unhide",
]

# What every event has: a field of that name would hide it.
TAKEN_IN_EVENTS = frozenset(
    {"as_dict", "from_bytes", "origin", "_exact_", "_fields_", "_reduce_", "_size_"}
)
# What an IntEnum cannot have as a member, or would lose by it. Spelled out: what is generated is
# the same under every interpreter.
TAKEN_IN_ENUMS = frozenset(
    {
        *("mro", "name", "value", "real", "imag", "numerator", "denominator", "conjugate"),
        *("as_integer_ratio", "bit_count", "bit_length", "from_bytes", "is_integer", "to_bytes"),
    }
)
# What generated code uses without an import.
BUILTINS = (
    *("bool", "bytes", "float", "int", "list", "object", "property", "str", "super", "tuple"),
)
IDENTIFIER = re.compile(r"\w*")
DOTTED = re.compile(r"\w[\w.$]*")


class Names:
    """The names of a scope; one that is taken gets underscores at its end. Not thread-safe."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {*taken, *keyword.kwlist}

    def claim(self, wanted: str) -> str:
        """Return ``wanted``, or what comes closest and is free; it is taken then."""
        name = wanted
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def class_name(name: str) -> str:
    """Return the class for a C struct, union or enum: ``open_event`` is ``OpenEvent``."""
    words = [word for word in _checked(name, IDENTIFIER).split("_") if word]
    joined = "".join(word[0].upper() + word[1:] for word in words) or "Unnamed"
    if keyword.iskeyword(joined) or joined[0].isdigit():
        return f"_{joined}"
    return joined


def field_name(name: str) -> str:
    """Return the attribute for a C field: keywords and what events have get a trailing ``_``."""
    reserved = keyword.iskeyword(_checked(name, IDENTIFIER)) or name in TAKEN_IN_EVENTS
    dunder = len(name) > 4 and name.startswith("__") and name.endswith("__")
    return f"{name}_" if reserved or dunder else name


def field_names(names: Iterable[str]) -> list[str]:
    """Return the attributes for the fields of one struct, in their order, each given once.

    Beside a field ``class_`` the keyword ``class`` gets one underscore more.
    """
    return each_once(names, field_name)


def module_class_name(file: str) -> str:
    """Return what classes about a whole object begin with: ``my-probe.bpf.o`` is ``MyProbe``."""
    stem = file.split(".")[0]
    return class_name(re.sub(r"\W", "_", stem))


def attribute_name(name: str) -> str:
    """Return the attribute for a map, variable or program: no keyword, no dot, not private."""
    plain = re.sub(r"\W", "_", _checked(name, DOTTED))
    if plain.startswith("__"):
        # In the body of a class Python would make another name of it.
        plain = plain.lstrip("_") or "_"
    if plain[0].isdigit():
        plain = f"N{plain}"
    if keyword.iskeyword(plain) or plain == "property":
        return f"{plain}_"
    return plain


def unhide(annotation: str, attributes: Collection[str], aliases: dict[str, str]) -> str:
    """Return an annotation for a class with these attributes.

    Within a class its attributes come before the names of the module: after ``bytes: bytes`` the
    type is hidden. Such a name is replaced by an alias, which is added to ``aliases``.
    """

    def shown(match: re.Match[str]) -> str:
        if match[0] not in attributes:
            return match[0]
        return aliases.setdefault(match[0], f"_{match[0]}")

    return re.sub(r"[A-Za-z_]\w*", shown, annotation)


def member_name(name: str) -> str:
    """Return the IntEnum member for an enumerator; names that Python would change lose ``_``."""
    plain = _checked(name, IDENTIFIER)
    if plain.startswith("_"):
        plain = plain.strip("_")
    if not plain or plain[0].isdigit():
        plain = f"N{plain}"
    if keyword.iskeyword(plain) or plain in TAKEN_IN_ENUMS:
        return f"{plain}_"
    return plain


def _checked(name: str, allowed: re.Pattern[str]) -> str:
    """Refuse what no C compiler calls anything: it would become Python as it stands."""
    if allowed.fullmatch(name) is None:
        raise FormatError(f"write Python for {name!r}: it is no name in C")
    return name
