"""Options: precedence, the kill switch, messages that name option, value and what is allowed."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneltrace_core.errors import OptionError
from kerneltrace_core.requests import options as options_module
from kerneltrace_core.requests.options import IntegrationOptions, TracerOptions, resolve


def resolved(
    keywords: dict[str, object] | None = None,
    settings: dict[str, object] | None = None,
    **environ: str,
) -> IntegrationOptions:
    variables = {f"KERNELTRACE_{name.upper()}": text for name, text in environ.items()}
    return resolve(IntegrationOptions, keywords, settings, variables)


def test_nothing_given_is_the_documented_default() -> None:
    options = resolved()

    assert options == IntegrationOptions(
        enabled=True,
        required=False,
        backend="auto",
        probes=("sched", "syscalls", "block", "net"),
        syscalls="time",
        sample_rate=1.0,
        slow_request_ms=None,
        log_level=logging.INFO,
        loop_block_ms=None,
        excluded_urls=(),
        server_timing=False,
        on_request=None,
    )


def test_a_keyword_beats_settings_which_beat_the_environment() -> None:
    environ = {"backend": "off", "sample_rate": "0.1", "slow_request_ms": "3"}

    options = resolved({"backend": "bpf"}, {"BACKEND": "procfs", "SAMPLE_RATE": 0.5}, **environ)

    assert (options.backend, options.sample_rate, options.slow_request_ms) == ("bpf", 0.5, 3.0)


@pytest.mark.parametrize("text", ["0", "false", "no", "OFF", " 0 "])
def test_the_kill_switch_beats_a_keyword_and_hides_the_rest_of_the_environment(text: str) -> None:
    options = resolved({"enabled": True, "required": True}, enabled=text, sample_rate="a lot")

    assert not options.enabled
    assert options.sample_rate == 1.0


def test_an_enabling_environment_does_not_overrule_a_keyword() -> None:
    assert not resolved({"enabled": False}, enabled="1").enabled


def test_an_unknown_keyword_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(
        OptionError,
        match=r"set option 'slow_reqest_ms': there is no such option "
        r"\(did you mean 'slow_request_ms'\?\)",
    ):
        resolved({"slow_reqest_ms": 5})


def test_an_unknown_keyword_that_resembles_nothing_is_answered_with_all_names() -> None:
    with pytest.raises(OptionError, match="known are enabled, required, backend"):
        resolved({"zzz": 5})


def test_an_unknown_setting_is_answered_in_its_own_spelling() -> None:
    with pytest.raises(OptionError, match=r"KERNELTRACE setting 'PROBE'.*did you mean 'PROBES'\?"):
        resolved(settings={"PROBE": ["net"]})


def test_a_setting_in_lower_case_is_answered_in_upper_case() -> None:
    with pytest.raises(OptionError, match=r"'sample_rate': there is no such option"):
        resolved(settings={"sample_rate": 1})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("enabled", 1, "True or False"),
        ("required", "yes", "True or False"),
        ("backend", "ebpf", "one of 'auto', 'bpf', 'procfs', 'off'"),
        ("probes", ("sched", "disk"), "a list of 'sched', 'syscalls'"),
        ("probes", 3, "a list of"),
        ("probes", (1,), "a list of"),
        ("syscalls", True, "one of 'time', 'count'"),
        ("sample_rate", 1.5, "a number from 0 to 1"),
        ("sample_rate", -0.1, "a number from 0 to 1"),
        ("sample_rate", float("nan"), "a number from 0 to 1"),
        ("sample_rate", True, "a number from 0 to 1"),
        ("sample_rate", "0.5", "a number from 0 to 1"),
        ("slow_request_ms", -1, "milliseconds, 0 or more, or None"),
        ("loop_block_ms", "fast", "milliseconds, 0 or more, or None"),
        ("log_level", "CHATTY", "a logging level"),
        ("log_level", -3, "a logging level"),
        ("excluded_urls", "health(", r"regular expressions, .* \(missing \)"),
        ("server_timing", 1, "True, False, or a plain"),
        ("on_request", "module.hook", r"a plain \(not async\) function, or None"),
    ],
)
def test_a_wrong_value_is_refused_with_option_value_and_what_is_allowed(
    name: str, value: object, allowed: str
) -> None:
    with pytest.raises(OptionError, match=f"set option {name}: .* is not {allowed}"):
        resolved({name: value})
    with pytest.raises(OptionError, match=f"set KERNELTRACE setting {name.upper()}: .* is not"):
        resolved(settings={name.upper(): value})


def test_an_async_hook_is_refused_since_nobody_would_await_it() -> None:
    async def hook(scope: object, stats: object) -> None: ...

    with pytest.raises(OptionError, match="not async"):
        resolved({"on_request": hook})


def test_constructing_options_directly_checks_the_same() -> None:
    with pytest.raises(OptionError, match="set option backend: 'x' is not one of"):
        TracerOptions(backend="x")


def test_an_error_of_an_option_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="sample_rate"):
        resolved({"sample_rate": 2})


def test_every_environment_variable_is_read_as_its_kind() -> None:
    options = resolved(
        enabled="yes",
        required="TRUE",
        backend="BPF",
        probes="net, faults",
        syscalls="count",
        sample_rate="0.25",
        slow_request_ms="500",
        log_level="debug",
        loop_block_ms="12.5",
        excluded_urls="^/health, ^/metrics$",
        server_timing="on",
    )

    assert options == IntegrationOptions(
        required=True,
        backend="bpf",
        probes=("sched", "net", "faults"),
        syscalls="count",
        sample_rate=0.25,
        slow_request_ms=500.0,
        log_level=logging.DEBUG,
        loop_block_ms=12.5,
        excluded_urls=("^/health", "^/metrics$"),
        server_timing=True,
    )


def test_an_empty_variable_counts_as_unset() -> None:
    assert resolved(enabled="", backend="  ") == resolved()


@pytest.mark.parametrize(
    ("variable", "text", "told"),
    [
        ("sample_rate", "lots", "read KERNELTRACE_SAMPLE_RATE: 'lots' is not a number from 0 to 1"),
        ("required", "maybe", "read KERNELTRACE_REQUIRED: 'maybe' is not True or False"),
        ("on_request", "print", "read KERNELTRACE_ON_REQUEST: 'print' is not a plain"),
        ("sample_rat", "1", "read KERNELTRACE_SAMPLE_RAT: there is no such option (did you mean "
         "KERNELTRACE_SAMPLE_RATE?)"),
    ],
)  # fmt: skip
def test_a_slip_in_the_environment_is_told_once_and_passed_over(
    variable: str,
    text: str,
    told: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(options_module, "_complained", set())

    first, second = resolved(**{variable: text}), resolved(**{variable: text})

    assert first == second == resolved()
    [record] = caplog.records
    assert (record.name, record.levelno) == ("kerneltrace", logging.WARNING)
    assert record.getMessage().startswith(told)


def test_a_slip_in_the_environment_refuses_when_tracing_is_required() -> None:
    with pytest.raises(OptionError, match="read KERNELTRACE_SAMPLE_RATE: 'lots' is not"):
        resolved({"required": True}, sample_rate="lots")


def test_variables_of_other_parts_are_nobodys_slip(caplog: pytest.LogCaptureFixture) -> None:
    resolved(socket="/run/kerneltrace.sock", pin_path="/sys/fs/bpf/kt", object_dir="/x")

    assert not caplog.records


def test_a_keyword_hides_a_slip_in_its_variable_only_after_it_was_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options_module, "_complained", set())

    options = resolved({"sample_rate": 0.5}, sample_rate="lots")

    assert options.sample_rate == 0.5
    assert len(caplog.records) == 1


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELTRACE_SYSCALLS", "count")

    assert resolve(TracerOptions).syscalls == "count"


def test_the_schedulers_probes_are_always_among_the_groups() -> None:
    assert TracerOptions(probes=["net", "net"]).probes == ("sched", "net")  # type: ignore[arg-type]
    assert TracerOptions(probes=()).probes == ("sched",)


def test_the_tracers_part_compares_equal_whatever_the_rest_is() -> None:
    one, other = resolved({"sample_rate": 0.1}), resolved({"slow_request_ms": 9})

    assert one.tracer == other.tracer == TracerOptions()
    assert type(one.tracer) is TracerOptions


@given(st.floats(0, 1))
def test_a_sample_rate_survives_the_environment(rate: float) -> None:
    assert resolved(sample_rate=repr(rate)).sample_rate == rate


@given(st.dictionaries(st.text(max_size=30), st.text(max_size=30), max_size=4))
def test_no_environment_at_all_can_make_it_raise(variables: dict[str, str]) -> None:
    resolve(IntegrationOptions, environ={f"KERNELTRACE_{k}": v for k, v in variables.items()})
