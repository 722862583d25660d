"""Options of the middleware, and what follows from them once and for all requests."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from kerneltrace_asgi.protocol import Scope
from kerneltrace_core.exporters.hooks import Hook
from kerneltrace_core.requests import IntegrationOptions

__all__ = ["AsgiOptions"]


@dataclass(frozen=True)
class AsgiOptions(IntegrationOptions):
    """Hold the keywords of KernelTraceMiddleware; ``on_request`` and predicates get the scope."""

    def skip(self) -> Callable[[Scope], bool] | None:
        """Return what says which requests are passed over, None if none is."""
        rate = self.sample_rate
        searches = [re.compile(pattern).search for pattern in self.excluded_urls]
        if not searches:
            return None if rate >= 1 else lambda _scope: random.random() >= rate

        def skip(scope: Scope) -> bool:
            path = scope["path"]
            return any(search(path) for search in searches) or random.random() >= rate

        return skip

    def timing(self) -> Callable[[Scope], object] | None:
        """Return what says which responses get a Server-Timing header, None if none does."""
        if callable(self.server_timing):
            return Hook("server_timing", self.server_timing)
        return (lambda _scope: True) if self.server_timing else None
