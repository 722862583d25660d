"""Calls into the user's own functions, none of whose errors may reach a request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

__all__ = ["Hook"]

log = logging.getLogger("kerneltrace")


class Hook:
    """Call ``function``; log the first exception with its traceback and swallow them all.

    Thread-safe: two threads that fail at once may both log.
    """

    def __init__(self, option: str, function: Callable[..., object]) -> None:
        self.option = option
        self.function = function
        self.failures = 0

    def __call__(self, *args: Any) -> object:
        """Return what the function returned, None if it raised."""
        try:
            return self.function(*args)
        except Exception:
            self.failures += 1
            if self.failures == 1:
                log.exception("call %s %r: it raised (logged once)", self.option, self.function)
            return None
