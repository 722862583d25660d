"""What a signal handler raises while a border calls into Python is not lost."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kerneltrace_core._native.handlers import raised_by_handler

_step = pytest.importorskip("kerneltrace_core._native._step", reason="_step is not built")

THREADS, SLOTS, SLOTS_OFFSET, SLOT_BYTES = 4, 64, 4096, 2688

# The samplers here stand for those of the package.
OURS: dict[str, Any] = {"__name__": "kerneltrace_core.requests.procfs", "os": os, "signal": signal}


class TimeLimitError(Exception):
    pass


def raise_time_limit(*_signal: object) -> None:
    raise TimeLimitError("from the handler")


class Handler:
    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *about: object) -> None:
        self.function(*about)


@pytest.fixture
def handled() -> Iterator[Callable[[Any], None]]:
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def region() -> Iterator[Any]:
    memory = bytearray(SLOTS_OFFSET + SLOTS * SLOT_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = _step.Region(
        memory, address, THREADS, SLOTS, SLOTS_OFFSET, SLOT_BYTES, lambda: region.bind(0)
    )
    yield region
    region.sampler = None
    region.unbind()


def sampler(body: str) -> Callable[[int, int], None]:
    """Return a sampler of a module of ours that runs ``body`` the first time."""
    names = dict(OURS)
    exec(f"done = []\ndef sample(cell, now_ns):\n if not done:\n  done.append(1)\n  {body}", names)
    return names["sample"]  # type: ignore[no-any-return]


SIGNALLED = "os.kill(os.getpid(), signal.SIGUSR1); sum(range(10))"


@pytest.mark.parametrize(
    ("handler", "raised"),
    [(raise_time_limit, TimeLimitError), (signal.default_int_handler, KeyboardInterrupt)],
)
def test_what_a_handler_raises_inside_a_sampler_reaches_the_application(
    region: Any, handled: Callable[[Any], None], handler: Any, raised: type[BaseException]
) -> None:
    handled(handler)
    region.sampler = sampler(SIGNALLED)
    record = region.open()

    def work() -> None:
        _step.push(record)
        sum(each for each in range(10))  # whatever comes next raises

    with pytest.raises(raised):
        work()

    assert _step.current() is record, "the border itself was completed"
    _step.pop(None)
    record.close()


def test_what_a_library_raises_inside_a_sampler_is_the_samplers_failure(
    region: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: reported.append(about.exc_type))
    region.sampler = sampler("import json; json.loads('{')")
    record = region.open()

    _step.pop(_step.push(record))
    record.close()

    assert reported == [json.JSONDecodeError]


@pytest.mark.parametrize("wrap", [lambda found: found, functools.partial, Handler])
def test_a_handler_is_known_in_any_shape(wrap: Any) -> None:
    before = signal.signal(signal.SIGUSR1, wrap(raise_time_limit))
    try:
        with pytest.raises(TimeLimitError) as caught:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)

    signal.signal(signal.SIGUSR1, wrap(raise_time_limit))
    try:
        assert raised_by_handler(caught.value)
        assert raised_by_handler(KeyboardInterrupt())
        assert not raised_by_handler(ValueError())
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_samplers_own_failure_is_reported_and_no_more(
    region: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: reported.append(about.exc_value))
    region.sampler = sampler("raise OSError('no /proc')")
    record = region.open()

    _step.pop(_step.push(record))
    record.close()

    assert [str(each) for each in reported] == ["no /proc"]
