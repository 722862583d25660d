"""Options of the tracer and of its integrations, and where their values come from."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from kerneltrace_core.errors import OptionError
from kerneltrace_core.requests.option_kinds import (
    BACKENDS,
    FLAG,
    FLAG_OR_FUNCTION,
    FUNCTION,
    LEVEL,
    MILLISECONDS,
    PATTERNS,
    PROBE_GROUPS,
    RATE,
    WORDS,
    Kind,
    choice,
)

__all__ = ["IntegrationOptions", "TracerOptions", "resolve"]

PREFIX = "KERNELTRACE_"
KIND = "kind"

log = logging.getLogger("kerneltrace")
_complained: set[str] = set()


@dataclass(frozen=True)
class TracerOptions:
    """Hold what concerns the process's one tracer.

    Constructing one checks and normalizes every value. Raises OptionError.
    """

    enabled: bool = field(default=True, metadata={KIND: FLAG})
    required: bool = field(default=False, metadata={KIND: FLAG})
    backend: str = field(default="auto", metadata={KIND: choice(*BACKENDS)})
    probes: tuple[str, ...] = field(
        default=("sched", "syscalls", "block", "net"), metadata={KIND: PROBE_GROUPS}
    )
    syscalls: str = field(default="time", metadata={KIND: choice("time", "count")})
    share: str = field(default="auto", metadata={KIND: choice("auto", "pins", "own")})
    drop_capabilities: bool = field(default=False, metadata={KIND: FLAG})

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            value = kind.check(f"set option {name}", getattr(self, name))
            object.__setattr__(self, name, value)

    @property
    def tracer(self) -> TracerOptions:
        """Only those of these options that the tracer sees."""
        return TracerOptions(**{name: getattr(self, name) for name in _kinds(TracerOptions)})


@dataclass(frozen=True)
class IntegrationOptions(TracerOptions):
    """Add what every web integration offers: which requests, and where their numbers go.

    ``sample_rate`` is the traced part of all requests; times are milliseconds; ``log_level`` is
    stored as logging's number; ``excluded_urls`` are regular expressions searched in the path.
    ``on_request`` is called with the request (ASGI: its scope) and its KernelStats, on the thread
    that served it; ``server_timing`` may be a predicate of that same first argument.
    """

    sample_rate: float = field(default=1.0, metadata={KIND: RATE})
    slow_request_ms: float | None = field(default=None, metadata={KIND: MILLISECONDS})
    log_level: int = field(default=logging.INFO, metadata={KIND: LEVEL})
    loop_block_ms: float | None = field(default=None, metadata={KIND: MILLISECONDS})
    excluded_urls: tuple[str, ...] = field(default=(), metadata={KIND: PATTERNS})
    server_timing: bool | Callable[[Any], object] = field(
        default=False, metadata={KIND: FLAG_OR_FUNCTION}
    )
    on_request: Callable[[Any, Any], object] | None = field(default=None, metadata={KIND: FUNCTION})


Options = TypeVar("Options", bound=TracerOptions)


def resolve(
    options: type[Options],
    keywords: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    forgiving: bool = False,
) -> Options:
    """Build ``options``, each value from the first of: ``keywords``, ``settings``, environment.

    ``settings`` is an integration's own dictionary with upper-case names (Django's
    ``KERNELTRACE``); ``environ`` is the process's unless given, its names are
    ``KERNELTRACE_<NAME>``, empty ones count as unset. ``KERNELTRACE_ENABLED=0`` beats everything,
    and no other variable is then read.

    Raises OptionError for a name or value in keywords or settings that does not exist, unless
    ``forgiving``. What is wrong in the environment is always forgiven. Forgiven is: logged once
    as a WARNING and passed over, for an application that runs must not end because of its
    tracing; but if ``required`` is true it raises as well.
    """
    kinds = _kinds(options)
    values: dict[str, Any] = {}
    slips: list[OptionError] = []
    given = (
        ("KERNELTRACE setting", {name.upper(): name for name in kinds}, settings or {}),
        ("option", {name: name for name in kinds}, keywords or {}),
    )
    for what, names, source in given:
        for key, value in source.items():
            try:
                name = _known(key, names, what)
                values[name] = kinds[name].check(f"set {what} {key}", value)
            except OptionError as error:
                if not forgiving:
                    raise
                slips.append(error)
    environ = os.environ if environ is None else environ
    if WORDS.get(environ.get(PREFIX + "ENABLED", "").strip().lower()) is False:
        return options(**{**values, "enabled": False})
    for variable, text in _ours(environ):
        try:
            found = _read_variable(variable, text, kinds)
        except OptionError as error:
            slips.append(error)
        else:
            values = {**found, **values}
    resolved = options(**values)
    for slip in slips:
        if resolved.required:
            raise slip
        if str(slip) not in _complained:
            _complained.add(str(slip))
            log.warning("%s; it is passed over", slip)
    return resolved


def _kinds(options: type[TracerOptions]) -> dict[str, Kind]:
    return {each.name: each.metadata[KIND] for each in fields(options)}


def _known(key: str, names: Mapping[str, str], what: str) -> str:
    if key in names:
        return names[key]
    near = _near(key, names)
    hint = f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(names)
    raise OptionError(f"set {what} {key!r}: there is no such option ({hint})")


def _near(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    # Not at the top: every start would pay for what only a slip needs.
    import difflib

    return difflib.get_close_matches(name, known, n=1, cutoff=cutoff)


def _ours(environ: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and text.strip():
            yield variable, text.strip()


def _read_variable(variable: str, text: str, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    name = variable[len(PREFIX) :].lower()
    if name in kinds:
        return {name: kinds[name].read(f"read {variable}", text)}
    # Other variables of ours, and the user's own, share the prefix: only a near miss is a slip.
    near = _near(name, kinds, cutoff=0.85)
    if near:
        meant = PREFIX + near[0].upper()
        raise OptionError(f"read {variable}: there is no such option (did you mean {meant}?)")
    return {}
