"""Enums, whose signs and wide values older compilers leave out of BTF."""

from __future__ import annotations

from dataclasses import replace

from kerneltrace_core.btf.format import Btf
from kerneltrace_core.btf.kinds import Enum
from kerneltrace_core.btf.shapes import Scalar

__all__ = ["EnumReader"]

# Errors and "none" are the negative numbers in enums: as 32 bits they are from here on.
LEAST_NEGATIVE = 2**32 - 4096


class EnumReader:
    """Make scalars of enums as the compiler of this BTF means them. Immutable.

    clang before 15 (and pahole before 1.24) has no flag for a sign: -1 is written as
    4294967295. Where no enum at all has the flag, a number that does not fit the enum's size, or
    is a small negative one, tells. Either way a record's number and the enum's names agree.
    """

    def __init__(self, btf: Btf) -> None:
        self._flagged = any(isinstance(each, Enum) and each.signed for each in btf.types)

    def layout(self, enum: Enum) -> Scalar:
        """Return the scalar of an enum."""
        if enum.cut:
            # Its numbers were cut to 32 bits: a name for the wrong one is worse than none.
            enum = replace(enum, values=())
        elif not self._flagged and not enum.signed and _has_negatives(enum):
            values = tuple((name, _signed(value)) for name, value in enum.values)
            enum = replace(enum, signed=True, values=values)
        return Scalar(enum.size, enum.signed, "enum", name=enum.name, values=enum.values)


def _has_negatives(enum: Enum) -> bool:
    if enum.size > 4:
        return False
    limit = min(LEAST_NEGATIVE, 1 << 8 * enum.size)
    return any(value >= limit for _, value in enum.values)


def _signed(value: int) -> int:
    return value - 2**32 if value >> 31 else value
