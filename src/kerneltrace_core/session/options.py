"""What a session is told: every option checked once, before anything is opened."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kerneltrace_core.errors import OptionError
from kerneltrace_core.session.filters import Filter
from kerneltrace_core.session.probes import Probe

__all__ = ["OVERFLOWS", "PUMPS", "SessionOptions"]

PUMPS = ("inline", "thread")
OVERFLOWS = ("drop_oldest", "drop_newest", "block")
QUEUE_SIZE = 65_536


@dataclass(frozen=True)
class SessionOptions:
    """Everything about a session that is known before it opens. Immutable.

    ``object``: path of a ``.bpf.o``, its bytes, or the name of a built-in one (a plain word).
    ``probes``: specs to attach in this order; ``"auto"``: every program where its section says.
    ``programs``: names of the programs to load, None for all; what ``probes`` names is loaded too.
    ``variables``: global variables to set before load. ``map_sizes``: entries by map name.
    ``events``: declared classes to compare with the object before anything is loaded; others are
    compared when a stream names them. ``filter``: whom to trace, set before the first attach.
    ``btf``: kernel BTF to relocate against, a file or a folder that is searched by the kernel's
    release.
    ``pump``: who drains the rings, the readers themselves ("inline") or a daemon thread
    ("thread"). ``overflow`` and ``queue_size`` (records): what happens when a reader is slow.
    ``spin_us``: how long a waiting reader polls before it sleeps.

    Raises OptionError that names the option, the value and what is allowed.
    """

    object: str | Path | bytes
    probes: Sequence[Probe] | str = ()
    name: str | None = None
    programs: Sequence[str] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    map_sizes: Mapping[str, int] = field(default_factory=dict)
    events: Sequence[type] = ()
    filter: Filter | None = None
    btf: str | Path | None = None
    pump: str = "inline"
    overflow: str = "drop_oldest"
    queue_size: int = QUEUE_SIZE
    spin_us: float = 0

    def __post_init__(self) -> None:
        for option, (allowed, accept) in KINDS.items():
            value = getattr(self, option)
            try:
                kept = accept(value)
            except (TypeError, ValueError):
                shown = f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)
                raise OptionError(f"Session option {option}: {shown} is not {allowed}") from None
            object.__setattr__(self, option, kept)

    @classmethod
    def of(cls, object: Any, probes: Any, given: Mapping[str, Any]) -> SessionOptions:  # noqa: A002
        """Build from keywords; an unknown one raises OptionError with the nearest known."""
        known = [each.name for each in fields(cls) if each.name not in ("object", "probes")]
        for option in given:
            if option not in known:
                near = difflib.get_close_matches(option, known, 1)
                hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(known)
                raise OptionError(f"Session option {option}: there is no such option ({hint})")
        return cls(object, probes, **given)


def _object(value: Any) -> str | Path | bytes:
    if isinstance(value, (bytearray, memoryview)):
        value = bytes(value)
    if not isinstance(value, (str, Path, bytes)) or not value:
        raise TypeError
    return value


def _probes(value: Any) -> Any:
    if value == "auto":
        return value
    specs = tuple(value)
    if isinstance(value, str) or not all(isinstance(spec, Probe) for spec in specs):
        raise TypeError
    return specs


def _words(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    words = tuple(value)
    if isinstance(value, str) or not all(isinstance(word, str) and word for word in words):
        raise TypeError
    return words


def _classes(value: Any) -> tuple[type, ...]:
    classes = tuple(value)
    if not classes:
        return ()
    # Not at the top: it loads the extension, which a blueprint does without.
    from kerneltrace_core.events.declare import declared_of

    if isinstance(value, str) or not all(declared_of(each) is not None for each in classes):
        raise TypeError
    return classes


def _sizes(value: Any) -> Mapping[str, int]:
    sizes = _named(value)
    for entries in sizes.values():
        _count(1, 2**32 - 1)(entries)
    return sizes


def _named(value: Any) -> Mapping[str, Any]:
    named = dict(value)
    if not all(isinstance(name, str) for name in named):
        raise TypeError
    return MappingProxyType(named)


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def accept(value: Any) -> str:
        if value not in allowed:
            raise ValueError
        return str(value)

    return accept


def _count(low: int, high: int) -> Callable[[Any], int]:
    def accept(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError
        if not low <= value <= high:
            raise ValueError
        return value

    return accept


def _microseconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    if not 0 <= value <= 1_000_000 or math.isnan(value):
        raise ValueError
    return float(value)


def _optional(*types: type) -> Callable[[Any], Any]:
    def accept(value: Any) -> Any:
        if value is not None and (not isinstance(value, types) or value == ""):
            raise TypeError
        return value

    return accept


KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "object": ("a path, bytes, or the name of a built-in object", _object),
    "probes": ('a list of probes (Tracepoint(...), ...) or "auto"', _probes),
    "name": ("a name, or None", _optional(str)),
    "programs": ("a list of program names, or None", _words),
    "variables": ("a mapping of variable names to values", _named),
    "map_sizes": ("a mapping of map names to numbers of entries", _sizes),
    "events": ("a list of classes declared with kernel_event", _classes),
    "filter": ("a Filter, or None", _optional(Filter)),
    "btf": ("a path of a BTF file or of a folder of them, or None", _optional(str, Path)),
    "pump": ("one of " + ", ".join(map(repr, PUMPS)), _one_of(*PUMPS)),
    "overflow": ("one of " + ", ".join(map(repr, OVERFLOWS)), _one_of(*OVERFLOWS)),
    "queue_size": ("a number of records, 1 or more", _count(1, 2**31)),
    "spin_us": ("microseconds from 0 to 1000000", _microseconds),
}
