"""The ``KERNELTRACE`` setting: its keys, their defaults, and what is wrong with them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from kerneltrace_core import OptionError
from kerneltrace_core.requests import IntegrationOptions, resolve
from kerneltrace_core.requests.option_kinds import FLAG, FLAG_OR_FUNCTION, FUNCTION, Kind
from kerneltrace_core.requests.options import KIND, PREFIX

__all__ = ["DjangoOptions", "Fault", "connect", "load", "options"]

NAME = "KERNELTRACE"

log = logging.getLogger("kerneltrace")


def _or_path(kind: Kind) -> Kind:
    """Return ``kind`` that also takes the dotted path of a function, in the environment too."""

    def accept(value: Any) -> Any:
        if not isinstance(value, str):
            return kind.accept(value)
        try:
            found = import_string(value)
        except Exception as error:  # importing the user's module may raise anything
            raise ValueError from error
        return kind.accept(found)

    def parse(text: str) -> Any:
        try:
            return kind.parse(text)
        except (KeyError, ValueError):
            return text

    return Kind(f"{kind.allowed}, or the dotted path of such a function", accept, parse)


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    if value < 0:
        raise ValueError
    return value


def _folder(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, PurePath)) or not PurePath(value).is_absolute():
        raise ValueError
    return str(value)


_NUMBER = Kind("a whole number, 0 or more", _number, int)
_FOLDER = Kind("the absolute path of a folder, or None", _folder)


@dataclass(frozen=True)
class DjangoOptions(IntegrationOptions):
    """Hold the keys of the ``KERNELTRACE`` dictionary, here in lower case.

    Functions may be given by their dotted path; both get the HttpRequest: ``server_timing`` says
    whether this response gets the header, ``on_request`` also gets the final KernelStats.
    ``inject_logging`` adds the ``kernel_*`` fields to the records of every existing log handler.
    ``recent_requests`` is how many each process remembers; ``recent_socket`` the folder in which
    it answers ``manage.py kerneltrace recent``.
    """

    server_timing: bool | Callable[[Any], object] = field(
        default=False, metadata={KIND: _or_path(FLAG_OR_FUNCTION)}
    )
    on_request: Callable[[Any, Any], object] | None = field(
        default=None, metadata={KIND: _or_path(FUNCTION)}
    )
    inject_logging: bool = field(default=False, metadata={KIND: FLAG})
    recent_requests: int = field(default=200, metadata={KIND: _NUMBER})
    recent_socket: str | None = field(default=None, metadata={KIND: _FOLDER})


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: a key of the setting, or a variable of the environment.

    ``unknown``: there is no such option; else its value cannot be used.
    """

    key: str
    message: str
    hint: str
    unknown: bool = False
    from_environment: bool = False


def load() -> tuple[DjangoOptions, list[Fault]]:
    """Read the setting and the environment anew; what is wrong is left out, and told.

    Never raises: a slip here must not end an application that runs without tracing.
    """
    faults: list[Fault] = []
    given = getattr(settings, NAME, {})
    if not isinstance(given, Mapping):
        allowed = "use upper-case keys, such as {'SLOW_REQUEST_MS': 500}"
        faults.append(Fault(NAME, f"set {NAME}: {given!r} is not a dictionary", allowed))
        given = {}
    good = {str(key): value for key, value in given.items() if _fits(str(key), value, faults)}
    switch = {PREFIX + "ENABLED": os.environ.get(PREFIX + "ENABLED", "")}
    environ = {
        variable: text
        for variable, text in os.environ.items()
        if variable.startswith(PREFIX) and _fits_in_environment(variable, text, switch, faults)
    }
    return resolve(DjangoOptions, settings=good, environ=environ), faults


def _fits(key: str, value: object, faults: list[Fault]) -> bool:
    try:
        resolve(DjangoOptions, settings={key: value}, environ={})
    except OptionError as error:
        faults.append(_fault(key, str(error)))
        return False
    return True


def _fits_in_environment(
    variable: str, text: str, switch: Mapping[str, str], faults: list[Fault]
) -> bool:
    try:
        # Only for who requires tracing a slip in the environment raises; it never must here.
        required = {"REQUIRED": True}
        resolve(DjangoOptions, settings=required, environ={**switch, variable: text})
    except OptionError as error:
        faults.append(
            Fault(variable, str(error), "The variable is passed over.", from_environment=True)
        )
        return False
    return True


def _fault(key: str, message: str) -> Fault:
    default = {each.name.upper(): each.default for each in fields(DjangoOptions)}
    if key in default:
        return Fault(key, message, f"Until then the default is used: {default[key]!r}.")
    told, _, advice = message.rpartition(" (")
    return Fault(key, told, advice[:1].upper() + advice[1:].removesuffix(")"), unknown=True)


# What the setting asks for; None before it is asked, and when it has changed since.
in_force: DjangoOptions | None = None
_complained: set[str] = set()


def options() -> DjangoOptions:
    """Return what the setting asks for, read once; one WARNING says what was wrong with it."""
    global in_force
    found = in_force
    if found is None:
        found, faults = load()
        told = "; ".join(fault.message for fault in faults)
        if told and told not in _complained:
            _complained.add(told)
            log.warning("%s; defaults are used instead (manage.py check says more)", told)
        in_force = found
    return found


def forget(**changed: Any) -> None:
    """Have the setting read again; a receiver of ``setting_changed``."""
    global in_force
    if changed.get("setting", NAME) == NAME:
        in_force = None


def connect() -> None:
    """Follow ``override_settings``."""
    setting_changed.connect(forget, dispatch_uid="kerneltrace_django.settings")
