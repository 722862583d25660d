"""Whether threads are greenlets: then many requests share one thread, and nobody says when."""

from __future__ import annotations

import sys

__all__ = ["greenlet_library"]

PATCHERS = (
    ("gevent.monkey", "is_module_patched", "threading"),
    ("eventlet.patcher", "is_monkey_patched", "thread"),
)


def greenlet_library() -> str | None:
    """Return the module that made greenlets of this process's threads, None if none did."""
    for module, ask, name in PATCHERS:
        patched = getattr(sys.modules.get(module), ask, None)
        if patched is not None and patched(name):
            return module
    return None
