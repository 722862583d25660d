"""The options that the running kernel was built with."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Mapping

__all__ = ["parse_config", "read_config"]


def parse_config(lines: Iterable[str]) -> dict[str, str]:
    """Parse a kernel ``.config`` into ``{"CONFIG_BPF": "y", ...}``.

    ``# CONFIG_X is not set`` gives ``"n"``; quotes of strings are removed; other lines
    are passed over.
    """
    options: dict[str, str] = {}
    for raw in lines:
        line = raw.strip()
        if line.startswith("CONFIG_"):
            name, equals, value = line.partition("=")
            if equals:
                if len(value) >= 2 and value[0] == value[-1] == '"':
                    value = value[1:-1]
                options[name] = value
        elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
            options[line[len("# ") : -len(" is not set")]] = "n"
    return options


def read_config(
    release: str | None = None, *, proc: str = "/proc/config.gz", boot: str = "/boot"
) -> Mapping[str, str] | None:
    """Read the running kernel's options; None is could not tell.

    Looks at ``/proc/config.gz``, then at ``/boot/config-<release>`` and
    ``/usr/lib/modules/<release>/config``. Never raises: a container often has none.
    """
    if release is None:
        release = os.uname().release
    try:
        with gzip.open(proc, "rt", encoding="utf-8", errors="replace") as lines:
            return parse_config(lines)
    except (OSError, EOFError, zlib.error):
        pass
    for path in (f"{boot}/config-{release}", f"/usr/lib/modules/{release}/config"):
        try:
            with open(path, encoding="utf-8", errors="replace") as lines:
                return parse_config(lines)
        except OSError:
            continue
    return None
