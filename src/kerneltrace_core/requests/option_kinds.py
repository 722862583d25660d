"""Kinds of option values: what is allowed, and how the text of an environment variable is read."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kerneltrace_core.errors import OptionError

__all__ = [
    "BACKENDS",
    "FLAG",
    "FLAG_OR_FUNCTION",
    "FUNCTION",
    "LEVEL",
    "MILLISECONDS",
    "PATTERNS",
    "PROBES",
    "PROBE_GROUPS",
    "RATE",
    "Kind",
    "choice",
]

BACKENDS = ("auto", "bpf", "procfs", "off")
PROBES = ("sched", "syscalls", "block", "net", "faults")
WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


@dataclass(frozen=True)
class Kind:
    """Say which values an option takes.

    ``accept`` turns a value into the one that is stored, ``parse`` the text of an environment
    variable into a value; both raise ValueError, TypeError or KeyError, and ``allowed`` is what
    the user then reads.
    """

    allowed: str
    accept: Callable[[Any], Any]
    parse: Callable[[str], Any] = str

    def check(self, act: str, value: Any) -> Any:
        """Return what is stored for ``value``. Raises OptionError that begins with ``act``."""
        return self._run(self.accept, act, value)

    def read(self, act: str, text: str) -> Any:
        """Return what is stored for an environment variable's ``text``, else as check()."""
        return self._run(lambda each: self.accept(self.parse(each)), act, text)

    def _run(self, convert: Callable[[Any], Any], act: str, value: Any) -> Any:
        try:
            return convert(value)
        except (TypeError, ValueError, KeyError) as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise OptionError(f"{act}: {value!r} is not {self.allowed}{cause}") from None


def choice(*names: str) -> Kind:
    """Return the kind of exactly one of ``names``."""

    def accept(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return Kind("one of " + ", ".join(map(repr, names)), accept, str.lower)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _between(low: float, high: float) -> Callable[[Any], float]:
    def accept(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError
        if not low <= value <= high:  # also refuses NaN
            raise ValueError
        return float(value)

    return accept


def _or_none(accept: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else accept(value)


def _words(value: Any) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else tuple(value)
    # strip() also refuses what is no text
    return tuple(filter(None, map(str.strip, words)))


def _probes(value: Any) -> tuple[str, ...]:
    words = _words(value)
    if not set(words) <= set(PROBES):
        raise ValueError
    # Everything else leans on the scheduler's probes, so they are always there.
    return tuple(name for name in PROBES if name in words or name == "sched")


def _patterns(value: Any) -> tuple[str, ...]:
    words = _words(value)
    for word in words:
        try:
            re.compile(word)
        except re.error as error:
            raise ValueError from error
    return words


def _level(value: Any) -> int:
    level = logging.getLevelName(value.upper()) if isinstance(value, str) else value
    if isinstance(level, bool) or not isinstance(level, int) or level < 0:
        raise ValueError
    return level


def _function(value: Any) -> Any:
    if not callable(value) or inspect.iscoroutinefunction(value):
        raise TypeError
    return value


def _no_text(_text: str) -> Any:
    raise ValueError


FLAG = Kind(
    "True or False (in the environment 1, 0, true, false, yes, no, on, off)",
    _flag,
    lambda text: WORDS[text.lower()],
)
RATE = Kind("a number from 0 to 1", _between(0, 1), float)
MILLISECONDS = Kind("milliseconds, 0 or more, or None", _or_none(_between(0, math.inf)), float)
PROBE_GROUPS = Kind("a list of " + ", ".join(map(repr, PROBES)), _probes)
PATTERNS = Kind("regular expressions, as a list or separated by commas", _patterns)
LEVEL = Kind(
    "a logging level, as name or number",
    _level,
    lambda text: int(text) if text.isdigit() else text,
)
FUNCTION = Kind("a plain (not async) function, or None", _or_none(_function), _no_text)
FLAG_OR_FUNCTION = Kind(
    "True, False, or a plain (not async) function that says so of a request",
    lambda value: value if isinstance(value, bool) else _function(value),
    FLAG.parse,
)
