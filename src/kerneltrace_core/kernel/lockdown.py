"""Kernel lockdown: whether the kernel hides its memory even from root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Lockdown", "parse_command_line", "parse_lockdown", "read_lockdown"]

MODES = ("none", "integrity", "confidentiality")


@dataclass(frozen=True)
class Lockdown:
    """``mode`` is none, integrity, confidentiality, or None for could not tell. Immutable."""

    mode: str | None
    source: str = ""


def parse_lockdown(text: str) -> str:
    """Return the mode in brackets of ``none [integrity] confidentiality``; raises ValueError."""
    for word in text.split():
        if word.startswith("[") and word.endswith("]") and word[1:-1] in MODES:
            return word[1:-1]
    raise ValueError(f"parse lockdown {text!r}: no known mode in brackets")


def parse_command_line(text: str) -> str | None:
    """Return the mode that ``lockdown=`` asks for on the kernel command line, else None."""
    asked = None
    for word in text.split():
        name, equals, value = word.partition("=")
        if name == "lockdown" and equals and value in MODES:
            asked = value
    return asked


def read_lockdown(
    config: Mapping[str, str] | None = None,
    *,
    securityfs: str = "/sys/kernel/security/lockdown",
    command_line: str = "/proc/cmdline",
) -> Lockdown:
    """Find the lockdown mode; never raises.

    securityfs is often not mounted in containers. Then the command line and the kernel's
    options are a second source, but only for a yes: Secure Boot can lock a kernel down
    without a word in either, so their silence is "could not tell".
    """
    try:
        with open(securityfs, encoding="utf-8") as file:
            return Lockdown(parse_lockdown(file.read()), securityfs)
    except (OSError, ValueError):
        pass
    if config is not None:
        if config.get("CONFIG_SECURITY_LOCKDOWN_LSM", "n") == "n":
            return Lockdown("none", "kernel options")
        for mode in ("confidentiality", "integrity"):
            if config.get(f"CONFIG_LOCK_DOWN_KERNEL_FORCE_{mode.upper()}") == "y":
                return Lockdown(mode, "kernel options")
    try:
        with open(command_line, encoding="utf-8", errors="replace") as file:
            asked = parse_command_line(file.read())
    except OSError:
        asked = None
    if asked in ("integrity", "confidentiality"):
        return Lockdown(asked, command_line)
    return Lockdown(None)
