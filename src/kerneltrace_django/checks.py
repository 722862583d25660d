"""System checks, tag ``kerneltrace``: what is wrong with the settings, and what to type instead.

They load nothing into the kernel, so every management command can run them.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core import checks
from django.utils.module_loading import import_string

from kerneltrace_core.requests.availability import bpf_availability
from kerneltrace_django.settings import NAME, Fault, load

__all__ = ["connect"]

TAG = "kerneltrace"
MIDDLEWARE = "kerneltrace_django.middleware.KernelTraceMiddleware"
OTEL = "opentelemetry."
FIRST = f"Put {MIDDLEWARE!r} first in MIDDLEWARE; only OpenTelemetry's may be before it."
RECIPES = (
    "Give the server's process {names}: AmbientCapabilities={names} in its systemd unit, "
    "--cap-add in Docker, securityContext.capabilities.add in Kubernetes, "
    "or setcap {lower}=ep on a copy of the interpreter."
)
INSTEAD = {
    "auto": "the numbers come from /proc instead: times, page faults and disk bytes, "
    "but no system calls, causes or network",
    "bpf": "BACKEND is 'bpf', but the numbers come from /proc as long as REQUIRED is not set",
    "required": "REQUIRED is set: every request will be answered with an error",
}


def connect() -> None:
    """Register the checks."""
    for check in (check_settings, check_middleware, check_kernel, check_server_timing):
        checks.register(check, TAG)
    checks.register(check_capabilities, TAG, deploy=True)


def check_settings(**_kwargs: Any) -> list[checks.CheckMessage]:
    """W008, W009: keys that do not exist, values that cannot be used. W007: the environment."""
    return [_told(fault) for fault in load()[1]]


def _told(fault: Fault) -> checks.CheckMessage:
    # No errors: those keep migrate and runserver from running, because of tracing.
    number = "W008" if fault.unknown else "W009"
    if fault.from_environment:
        number = "W007"
    return checks.Warning(fault.message, hint=fault.hint, id=f"{TAG}.{number}")


def check_middleware(**_kwargs: Any) -> list[checks.CheckMessage]:
    """W001: the middleware is missing, W002: there twice, W003: in the wrong place."""
    if not load()[0].enabled:
        return []
    paths = list(settings.MIDDLEWARE)
    places = [place for place, path in enumerate(paths) if _is_ours(path)]
    if not places:
        message = f"{NAME}: no request is traced, MIDDLEWARE has no KernelTraceMiddleware."
        return [checks.Warning(message, hint=FIRST, id=f"{TAG}.W001")]
    found: list[checks.CheckMessage] = []
    if len(places) > 1:
        message = f"MIDDLEWARE has KernelTraceMiddleware {len(places)} times; the outermost counts."
        hint = "Keep the first, remove the others."
        found.append(checks.Warning(message, hint=hint, id=f"{TAG}.W002"))
    outside = [path for path in paths[: places[0]] if not path.startswith(OTEL)]
    if outside:
        message = f"KernelTraceMiddleware is not first: it does not see {', '.join(outside)}."
        found.append(checks.Warning(message, hint=FIRST, id=f"{TAG}.W003"))
    return found


def _is_ours(path: str) -> bool:
    if path == MIDDLEWARE:
        return True
    try:
        found = import_string(path)
    except Exception:  # noqa: BLE001 - Django says so itself, when it loads it
        return False
    ours = import_string(MIDDLEWARE)
    return isinstance(found, type) and issubclass(found, ours)


def check_kernel(**_kwargs: Any) -> list[checks.CheckMessage]:
    """W004: BPF cannot work in this process, why, and what there is instead."""
    options = load()[0]
    if not options.enabled or options.backend not in ("auto", "bpf"):
        return []
    told = bpf_availability()
    if told.expected:
        return []
    instead = INSTEAD["required" if options.required else options.backend]
    message = f"Kernel tracing by BPF is not possible in this process: {told.reason}; {instead}."
    remedy = f"Remedy: {told.remedy}. " if told.remedy else ""
    hint = f"{remedy}Where that is not wanted, set {NAME}['BACKEND'] = 'procfs'."
    return [checks.Warning(message, hint=hint, id=f"{TAG}.W004")]


def check_server_timing(**_kwargs: Any) -> list[checks.CheckMessage]:
    """W005: everyone can read how the server spends its time."""
    options = load()[0]
    if settings.DEBUG or not options.enabled or options.server_timing is not True:
        return []
    message = f"{NAME}['SERVER_TIMING'] is True without DEBUG: every client learns where time goes."
    hint = (
        "Give it a function, or its dotted path, that says whose requests may be answered so: "
        "lambda request: request.user.is_staff."
    )
    return [checks.Warning(message, hint=hint, id=f"{TAG}.W005")]


def check_capabilities(**_kwargs: Any) -> list[checks.CheckMessage]:
    """W006, with ``--deploy``: capabilities that tracing by BPF needs are missing."""
    options = load()[0]
    if not options.enabled or options.backend not in ("auto", "bpf"):
        return []
    missing = bpf_availability().missing
    if not missing:
        return []
    names, lower = " ".join(missing), ",".join(missing).lower()
    message = f"This process lacks {', '.join(missing)}, which tracing by BPF needs."
    return [
        checks.Warning(message, hint=RECIPES.format(names=names, lower=lower), id=f"{TAG}.W006")
    ]
