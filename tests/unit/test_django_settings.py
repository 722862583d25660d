"""The KERNELTRACE setting: defaults, the environment, and what is wrong with either."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from django_site import configure
from kerneltrace_django import settings as ours
from kerneltrace_django.settings import DjangoOptions, load, options

configure()


def say_yes(request: Any) -> bool:
    return True


async def asynchronous(request: Any, stats: Any) -> None: ...


HERE = __name__


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ours._complained.clear()
    ours.forget()
    yield
    ours.forget()


def messages(**setting: Any) -> list[str]:
    with override_settings(KERNELTRACE=setting):
        return [fault.message for fault in load()[1]]


def test_without_the_setting_everything_is_at_its_default() -> None:
    assert load() == (DjangoOptions(), [])


def test_keys_are_in_upper_case() -> None:
    with override_settings(KERNELTRACE={"SLOW_REQUEST_MS": 500, "EXCLUDED_URLS": [r"^/health"]}):
        found = options()

    assert (found.slow_request_ms, found.excluded_urls) == (500.0, ("^/health",))


def test_it_is_read_once_and_again_when_it_changes() -> None:
    first = options()
    assert options() is first

    with override_settings(KERNELTRACE={"SAMPLE_RATE": 0.5}):
        assert options().sample_rate == 0.5
    assert options().sample_rate == 1.0

    with override_settings(DEBUG=True):
        kept = options()
    assert options() is kept


def test_the_setting_beats_the_environment_which_beats_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERNELTRACE_SAMPLE_RATE", "0.25")
    monkeypatch.setenv("KERNELTRACE_LOOP_BLOCK_MS", "80")
    with override_settings(KERNELTRACE={"SAMPLE_RATE": 0.5}):
        found, faults = load()

    assert (found.sample_rate, found.loop_block_ms, faults) == (0.5, 80.0, [])


def test_the_kill_switch_of_the_environment_beats_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERNELTRACE_ENABLED", "0")
    monkeypatch.setenv("KERNELTRACE_SAMPLE_RATE", "nonsense, and not even read")
    with override_settings(KERNELTRACE={"ENABLED": True}):
        found, faults = load()

    assert not found.enabled
    assert faults == []


def test_functions_may_be_given_by_their_dotted_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELTRACE_SERVER_TIMING", "django.utils.text.slugify")
    with override_settings(KERNELTRACE={"ON_REQUEST": "django.utils.text.capfirst"}):
        found = options()

    assert (found.server_timing.__name__, found.on_request.__name__) == ("slugify", "capfirst")  # type: ignore[union-attr]


def test_functions_may_be_given_as_they_are() -> None:
    with override_settings(KERNELTRACE={"SERVER_TIMING": say_yes}):
        assert options().server_timing is say_yes


def test_a_flag_of_the_environment_is_still_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELTRACE_SERVER_TIMING", "yes")

    assert options().server_timing is True


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"SAMPLE_RAT": 1},
            "set KERNELTRACE setting 'SAMPLE_RAT': there is no such option",
        ),
        (
            {"SAMPLE_RATE": 2},
            "set KERNELTRACE setting SAMPLE_RATE: 2 is not a number from 0 to 1",
        ),
        (
            {"ON_REQUEST": "nowhere.at_all"},
            "set KERNELTRACE setting ON_REQUEST: 'nowhere.at_all' is not a plain (not async) "
            "function, or None, or the dotted path of such a function "
            "(No module named 'nowhere')",
        ),
        (
            {"ON_REQUEST": asynchronous},
            f"set KERNELTRACE setting ON_REQUEST: {asynchronous!r} is not a plain (not async) "
            "function, or None, or the dotted path of such a function",
        ),
        ({7: "seven"}, "set KERNELTRACE setting '7': there is no such option"),
    ],
)
def test_what_is_wrong_is_told(setting: dict[Any, Any], message: str) -> None:
    with override_settings(KERNELTRACE=setting):
        found, faults = load()

    assert [fault.message for fault in faults] == [message]
    assert found == DjangoOptions()


def test_a_setting_that_is_no_dictionary_is_told() -> None:
    with override_settings(KERNELTRACE=["SAMPLE_RATE"]):
        found, [fault] = load()

    assert fault.message == "set KERNELTRACE: ['SAMPLE_RATE'] is not a dictionary"
    assert found == DjangoOptions()


def test_the_good_keys_count_beside_a_bad_one() -> None:
    with override_settings(KERNELTRACE={"SAMPLE_RATE": "all", "SLOW_REQUEST_MS": 5}):
        found, faults = load()

    assert (found.sample_rate, found.slow_request_ms, len(faults)) == (1.0, 5.0, 1)


def test_who_requires_tracing_boots_with_a_slip_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERNELTRACE_SAMPLE_RATE", "many")
    with override_settings(KERNELTRACE={"REQUIRED": True}):
        found, [fault] = load()

    assert found.required
    assert fault.from_environment
    assert fault.message == "read KERNELTRACE_SAMPLE_RATE: 'many' is not a number from 0 to 1"


def test_one_warning_tells_all_that_is_wrong_once(caplog: pytest.LogCaptureFixture) -> None:
    with (
        override_settings(KERNELTRACE={"SAMPLE_RATE": 2, "COLOUR": "red"}),
        caplog.at_level(logging.WARNING, "kerneltrace"),
    ):
        options()
        ours.forget()
        options()

    [record] = caplog.records
    assert "SAMPLE_RATE: 2 is not" in record.message
    assert "'COLOUR': there is no such option" in record.message
