"""Whether BPF is expected to work, read from files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kerneltrace_core.kernel.capabilities import CapabilitySets
from kerneltrace_core.kernel.lockdown import Lockdown
from kerneltrace_core.kernel.privileges import Privileges
from kerneltrace_core.requests import availability
from kerneltrace_core.requests.availability import bpf_availability

HELD = CapabilitySets(effective=frozenset(("cap_bpf", "cap_perfmon")))


@pytest.fixture(autouse=True)
def fitting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make everything fit, whatever this machine is."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(availability, "EXTENSION", "json")
    for name in ("OBJECT", "VMLINUX"):
        monkeypatch.setattr(availability, name, tmp_path)
    monkeypatch.setattr(availability, "OBJECT", Path(__file__))
    with_privileges(monkeypatch, Privileges(HELD, initial_user_namespace=True))


def with_privileges(monkeypatch: pytest.MonkeyPatch, privileges: Privileges) -> None:
    monkeypatch.setattr(availability, "read_privileges", lambda: privileges)


def test_with_everything_there_it_is_expected() -> None:
    assert bpf_availability() == (True, "", "", ())


def test_another_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert bpf_availability() == (False, "darwin has no BPF", "run it on Linux", ())


def test_missing_capabilities_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_privileges(monkeypatch, Privileges(CapabilitySets(effective=frozenset(("cap_bpf",)))))

    assert bpf_availability() == (
        False,
        "CAP_PERFMON missing",
        "give it CAP_PERFMON",
        ("CAP_PERFMON",),
    )


def test_capabilities_of_a_user_namespace_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with_privileges(monkeypatch, Privileges(HELD, initial_user_namespace=False))

    told = bpf_availability()

    assert not told.expected
    assert "user namespace" in told.reason
    assert told.missing == ()


def test_lockdown_in_mode_confidentiality_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_privileges(monkeypatch, Privileges(HELD, True, lockdown=Lockdown("confidentiality")))

    assert "lockdown" in bpf_availability().reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [("OBJECT", "compiled probes"), ("VMLINUX", "no type information")],
)
def test_a_missing_file_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, reason: str
) -> None:
    monkeypatch.setattr(availability, name, tmp_path / "none")

    assert not bpf_availability().expected
    assert reason in bpf_availability().reason


def test_an_extension_that_was_not_built_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "EXTENSION", "kerneltrace_core._native._absent")

    assert "not built" in bpf_availability().reason


def test_what_cannot_be_read_does_not_count_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_privileges(monkeypatch, Privileges())

    assert bpf_availability().expected
