"""Do a part of a test in a forked child: what it changes about itself ends with it."""

from __future__ import annotations

import ctypes
import os
import pickle
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000


def in_child(act: Callable[[], T]) -> T:
    """Return what ``act`` returns in a child; fails with the child's traceback if it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer = pickle.dumps((True, act()))
        except BaseException:  # noqa: BLE001 - a forked child must not run on into pytest
            answer = pickle.dumps((False, traceback.format_exc()))
        with os.fdopen(writing, "wb") as out:
            out.write(answer)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        content = told.read()
    os.waitpid(child, 0)
    assert content, "the child died before it could answer"
    succeeded, value = pickle.loads(content)
    assert succeeded, value
    result: T = value
    return result


def in_network_namespace(act: Callable[[], T]) -> T:
    """Return what ``act`` returns in a network namespace of its own, which ends with it."""

    def inside() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        return act()

    return in_child(inside)
