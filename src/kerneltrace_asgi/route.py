"""The template of the route that served a request: what its numbers can be grouped by."""

from __future__ import annotations

from kerneltrace_asgi.protocol import Scope

__all__ = ["route_of"]


def route_of(scope: Scope) -> str | None:
    """Return the route's template with its mounts, None if no framework left one.

    Known only after the application returned. Starlette and FastAPI leave the route object,
    Litestar the template. Never holds a value of a path parameter.
    """
    route = scope.get("route")
    if route is None:
        template = scope.get("path_template")
        return template if isinstance(template, str) else None
    # A mount that had no routes of its own to choose from (files, a foreign application).
    template = "" if hasattr(route, "routes") else _template(scope, route)
    if template is None:
        return None
    return _mounted_at(scope, template) + template or "/"


def _template(scope: Scope, route: object) -> str | None:
    # FastAPI 0.137+: a router that was included knows its prefix only here.
    included = scope.get("fastapi")
    context = included.get("effective_route_context") if isinstance(included, dict) else None
    if context is not None and getattr(context, "original_route", None) is route:
        route = context
    # Starlette's path also has the converters, which no other framework would show.
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    return template if isinstance(template, str) else None


def _mounted_at(scope: Scope, template: str) -> str:
    root = scope.get("root_path", "")
    prefix: str = root[len(scope.get("app_root_path", root)) :]
    if not prefix:
        return ""
    names = {
        str(value): f"{{{name}}}"
        for name, value in scope.get("path_params", {}).items()
        if f"{{{name}}}" not in template
    }
    return "/".join(names.get(segment, segment) for segment in prefix.split("/"))
