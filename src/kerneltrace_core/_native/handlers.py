"""Which exceptions came out of a signal handler; asked by the extension `_step` after a failure."""

from __future__ import annotations

import signal
from types import CodeType
from typing import Any

__all__ = ["raised_by_handler"]


def raised_by_handler(error: BaseException) -> bool:
    """Tell whether a signal handler raised this, and not what it interrupted.

    KeyboardInterrupt and SystemExit always count as such. A handler is known by its code: a
    function, a method, a functools.partial of one, or an object with ``__call__``.
    """
    if not isinstance(error, Exception):
        return True
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _code(handler: Any) -> CodeType | None:
    handler = getattr(handler, "func", handler)  # of a partial
    code = getattr(handler, "__code__", None)
    if code is None and callable(handler):
        code = getattr(type(handler).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None
