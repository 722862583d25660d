"""Probe: the blueprint of one attachment, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from kerneltrace_core.errors import OptionError

__all__ = ["Probe"]


@dataclass(frozen=True)
class Probe:
    """What a program is to be attached to. Frozen data: it touches no kernel and owns nothing.

    ``program``: name or section of the program; None takes the one whose section names this
    probe, else the only one of a fitting section without a target (``SEC("kprobe")``).
    ``optional``: a failure is logged once and kept in ``Link.error`` instead of raised.
    ``label``: a name of your own, for messages.

    Raises OptionError that names the probe, the field, the value and what is allowed.
    """

    program: str | None = field(default=None, kw_only=True)
    optional: bool = field(default=False, kw_only=True)
    label: str | None = field(default=None, kw_only=True)

    kind: ClassVar[str] = "probe"
    # Beginnings of the sections that programs for it are in, as libbpf knows them.
    sections: ClassVar[tuple[str, ...]] = ()
    # Types and expected attach types that the kernel takes there (include/uapi/linux/bpf.h);
    # an empty second set: any.
    program_types: ClassVar[frozenset[int]] = frozenset()
    attach_types: ClassVar[frozenset[int]] = frozenset()

    def __post_init__(self) -> None:
        self._text("program", optional=True)
        self._text("label", optional=True)
        optional: object = self.optional
        if not isinstance(optional, bool):
            self._refuse("optional", "True or False")

    def target(self) -> str:
        """Say what is probed, in the kernel's words: ``syscalls:sys_enter_openat``."""
        raise NotImplementedError

    def section_targets(self) -> tuple[str, ...]:
        """Return what sections of programs made for this probe have behind the slash."""
        return ()

    def describe(self) -> str:
        """Say what this is: ``tracepoint syscalls:sys_enter_openat``, and its label if it has."""
        told = f"{self.kind} {self.target()}".rstrip()
        return f"{told} ({self.label})" if self.label else told

    def __str__(self) -> str:
        return self.describe()

    # ---- checks -----------------------------------------------------------------

    def _refuse(self, name: str, allowed: str) -> None:
        value = getattr(self, name)
        raise OptionError(f"{type(self).__name__} {name}: {value!r} is not {allowed}")

    def _text(self, name: str, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if not isinstance(value, str) or not value or "\0" in value:
            self._refuse(name, "a name" + (", or None" if optional else ""))

    def _number(
        self, name: str, low: int, high: int = 2**63 - 1, *, optional: bool = False
    ) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            top = "" if high == 2**63 - 1 else f" to {high}"
            self._refuse(name, f"a whole number from {low}{top}" + (", or None" * optional))

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            self._refuse(name, "one of " + ", ".join(map(repr, allowed)))
