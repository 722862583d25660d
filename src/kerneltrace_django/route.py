"""The route of a request: the pattern of its URL, which names the view and not the visitor."""

from __future__ import annotations

from typing import Any

__all__ = ["route_of"]


def route_of(request: Any) -> str | None:
    """Return the pattern of the URL that was resolved, None where none was."""
    match = request.resolver_match
    route: str | None = match.route if match is not None else None
    return route
