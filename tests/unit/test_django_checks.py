"""What ``manage.py check`` prints for each fault, word for word."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.test import override_settings

from django_site import MIDDLEWARE, configure
from kerneltrace_core.requests.availability import BpfAvailability
from kerneltrace_django import checks
from kerneltrace_django.middleware import KernelTraceMiddleware

configure()

COMMON = "django.middleware.common.CommonMiddleware"


class Derived(KernelTraceMiddleware):
    """A middleware of the user's."""


def when_staff(request: Any) -> bool:
    return False


@pytest.fixture(autouse=True)
def _possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELTRACE_ENABLED", "")
    answer(monkeypatch, BpfAvailability(True))


def answer(monkeypatch: pytest.MonkeyPatch, told: BpfAvailability) -> None:
    monkeypatch.setattr(checks, "bpf_availability", lambda: told)


def check(*, deploy: bool = False, **changed: Any) -> str:
    """Return what the command prints."""
    out, err = StringIO(), StringIO()
    with override_settings(**changed):
        call_command("check", tags=["kerneltrace"], deploy=deploy, stdout=out, stderr=err)
    return err.getvalue() or out.getvalue()


def one(text: str) -> str:
    # As manage.py prints it. Always a warning: errors also end any other command.
    return (
        "System check identified some issues:\n\n"
        f"WARNINGS:\n{text}\n\n"
        "System check identified 1 issue (0 silenced)."
    )


def test_nothing_is_wrong() -> None:
    assert check() == "System check identified no issues (0 silenced).\n"


def test_a_key_that_does_not_exist() -> None:
    assert check(KERNELTRACE={"SLOW_REQUESTS_MS": 500}).strip() == one(
        "?: (kerneltrace.W008) set KERNELTRACE setting 'SLOW_REQUESTS_MS': "
        "there is no such option\n"
        "\tHINT: Did you mean 'SLOW_REQUEST_MS'?",
    )


def test_a_value_of_the_wrong_type() -> None:
    assert check(KERNELTRACE={"SAMPLE_RATE": "all"}).strip() == one(
        "?: (kerneltrace.W009) set KERNELTRACE setting SAMPLE_RATE: 'all' is not "
        "a number from 0 to 1\n"
        "\tHINT: Until then the default is used: 1.0.",
    )


def test_a_dotted_path_that_leads_nowhere() -> None:
    assert check(KERNELTRACE={"SERVER_TIMING": "shop.conditions.staff"}).strip() == one(
        "?: (kerneltrace.W009) set KERNELTRACE setting SERVER_TIMING: 'shop.conditions.staff' "
        "is not True, False, or a plain (not async) function that says so of a request, or the "
        "dotted path of such a function (No module named 'shop')\n"
        "\tHINT: Until then the default is used: False.",
    )


def test_a_variable_of_the_environment_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELTRACE_PROBES", "everything")

    assert check().strip() == one(
        "?: (kerneltrace.W007) read KERNELTRACE_PROBES: 'everything' is not a list of 'sched', "
        "'syscalls', 'block', 'net', 'faults'\n"
        "\tHINT: The variable is passed over."
    )


def test_the_middleware_is_missing() -> None:
    assert check(MIDDLEWARE=[COMMON]).strip() == one(
        "?: (kerneltrace.W001) KERNELTRACE: no request is traced, MIDDLEWARE has no "
        "KernelTraceMiddleware.\n"
        "\tHINT: Put 'kerneltrace_django.middleware.KernelTraceMiddleware' first in MIDDLEWARE; "
        "only OpenTelemetry's may be before it."
    )


def test_the_middleware_is_there_twice() -> None:
    assert check(MIDDLEWARE=[MIDDLEWARE, COMMON, MIDDLEWARE]).strip() == one(
        "?: (kerneltrace.W002) MIDDLEWARE has KernelTraceMiddleware 2 times; the outermost "
        "counts.\n"
        "\tHINT: Keep the first, remove the others."
    )


def test_the_middleware_is_in_the_wrong_place() -> None:
    assert check(MIDDLEWARE=[COMMON, MIDDLEWARE]).strip() == one(
        "?: (kerneltrace.W003) KernelTraceMiddleware is not first: it does not see "
        "django.middleware.common.CommonMiddleware.\n"
        "\tHINT: Put 'kerneltrace_django.middleware.KernelTraceMiddleware' first in MIDDLEWARE; "
        "only OpenTelemetry's may be before it."
    )


def test_directly_inside_opentelemetry_is_a_good_place() -> None:
    otel = "opentelemetry.instrumentation.django.middleware.otel_middleware._DjangoMiddleware"

    assert "no issues" in check(MIDDLEWARE=[otel, MIDDLEWARE, COMMON])


def test_a_class_of_the_users_that_derives_from_ours_counts() -> None:
    assert "no issues" in check(MIDDLEWARE=[f"{__name__}.Derived", COMMON])


LACKING = BpfAvailability(
    False,
    "CAP_BPF, CAP_PERFMON missing",
    "give it CAP_BPF, CAP_PERFMON",
    ("CAP_BPF", "CAP_PERFMON"),
)


def test_bpf_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, LACKING)

    assert check().strip() == one(
        "?: (kerneltrace.W004) Kernel tracing by BPF is not possible in this process: "
        "CAP_BPF, CAP_PERFMON missing; the numbers come from /proc instead: times, page faults "
        "and disk bytes, but no system calls, causes or network.\n"
        "\tHINT: Remedy: give it CAP_BPF, CAP_PERFMON. Where that is not wanted, set "
        "KERNELTRACE['BACKEND'] = 'procfs'."
    )


def test_bpf_is_not_available_but_required(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, BpfAvailability(False, "darwin has no BPF"))

    assert check(KERNELTRACE={"REQUIRED": True}).strip() == one(
        "?: (kerneltrace.W004) Kernel tracing by BPF is not possible in this process: "
        "darwin has no BPF; REQUIRED is set: every request will be answered with an error.\n"
        "\tHINT: Where that is not wanted, set KERNELTRACE['BACKEND'] = 'procfs'."
    )


@pytest.mark.parametrize("setting", [{"BACKEND": "procfs"}, {"ENABLED": False}])
def test_bpf_that_nobody_asks_for_may_be_unavailable(
    monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    answer(monkeypatch, LACKING)

    assert "no issues" in check(KERNELTRACE=setting, deploy=True)


def test_server_timing_is_open_to_the_public() -> None:
    assert check(KERNELTRACE={"SERVER_TIMING": True}).strip() == one(
        "?: (kerneltrace.W005) KERNELTRACE['SERVER_TIMING'] is True without DEBUG: every client "
        "learns where time goes.\n"
        "\tHINT: Give it a function, or its dotted path, that says whose requests may be "
        "answered so: lambda request: request.user.is_staff."
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"KERNELTRACE": {"SERVER_TIMING": True}, "DEBUG": True},
        {"KERNELTRACE": {"SERVER_TIMING": f"{__name__}.when_staff"}},
    ],
)
def test_server_timing_for_some_is_no_fault(changed: dict[str, Any]) -> None:
    assert "no issues" in check(**changed)


def test_missing_capabilities_matter_to_a_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    told = BpfAvailability(True, missing=("CAP_BPF", "CAP_PERFMON"))
    answer(monkeypatch, told)

    assert "no issues" in check()
    assert check(deploy=True).strip() == one(
        "?: (kerneltrace.W006) This process lacks CAP_BPF, CAP_PERFMON, which tracing by BPF "
        "needs.\n"
        "\tHINT: Give the server's process CAP_BPF CAP_PERFMON: "
        "AmbientCapabilities=CAP_BPF CAP_PERFMON in its systemd unit, --cap-add in Docker, "
        "securityContext.capabilities.add in Kubernetes, or setcap cap_bpf,cap_perfmon=ep on a "
        "copy of the interpreter."
    )
