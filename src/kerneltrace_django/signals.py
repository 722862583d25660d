"""Signals about requests: that one has finished, that one held the event loop for too long."""

from __future__ import annotations

from typing import Any

from asgiref.sync import iscoroutinefunction
from django.dispatch import Signal

__all__ = ["event_loop_blocked", "kernel_request_finished"]


class RequestSignal(Signal):
    """A signal whose receivers are plain functions.

    They run at once where the request ended, which may be the event loop; an asynchronous
    receiver would cost each request a thread.
    """

    def connect(self, receiver: Any, *args: Any, **kwargs: Any) -> Any:
        """Connect a receiver, as ever. Raises TypeError for an asynchronous one."""
        if iscoroutinefunction(receiver):
            raise TypeError(
                f"connect receiver {receiver!r}: it is asynchronous (use a plain function)"
            )
        return super().connect(receiver, *args, **kwargs)


# Sent with request and stats (final KernelStats), once for each traced request, when its response
# was returned or its streamed content has ended. The sender is the middleware's class.
kernel_request_finished = RequestSignal(use_caching=True)

# Sent with request, stats and duration_ms when one step of the request held the event loop for
# KERNELTRACE["LOOP_BLOCK_MS"] or longer; just before kernel_request_finished.
event_loop_blocked = RequestSignal(use_caching=True)
