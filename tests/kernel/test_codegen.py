"""Generated code against the kernel: known calls come back through its types."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.objects import compile_object
from harness.tiers import Require
from kerneltrace_core.codegen.__main__ import main
from kerneltrace_core.session.filters import Filter
from kerneltrace_core.session.probes import BtfTracepoint

pytestmark = pytest.mark.kernel


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Generate a module for the probe and import it, as an application would."""
    assert main([str(compile_object("typed")), "-o", str(tmp_path / "typed_generated.py")]) == 0
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("typed_generated")
    del sys.modules["typed_generated"]


def test_what_the_kernel_says_has_the_types_that_were_generated(
    typed: Any, require: Require
) -> None:
    require("ring_buffer")
    call = {"number": 0, "port": 443, "class_": 9}

    with typed.TypedSession(
        compile_object("typed"),
        [BtfTracepoint("sys_enter", program=typed.TypedPrograms.on_call)],
        filter=Filter(current_process=True),
        variables={"first": 1},
        map_sizes={"counts": 8},
    ) as session:
        with session.events(typed.CallEvent, timeout=5) as stream:
            # The kernel knows the call's number; this machine's is in the first event.
            os.getppid()
            first = next(iter(stream))
            call["number"] = first.call.number
            session.typed_maps.counts[call] = {"calls": 100, "last": 0, "comm": "nobody"}
            for _ in range(4):
                os.getppid()
            events = [first, *(event for _, event in zip(range(4), stream, strict=False))]
        count = session.typed_maps.counts[call]
        keys = list(session.typed_maps.counts)
        totals = [session.typed_maps.by_parity.sum(parity) for parity in (0, 1)]
        seen = session.typed_variables.seen
        session.typed_variables.seen = 70
        assert session.typed_variables.seen == session.variables["seen"] == 70
        with pytest.raises(AttributeError):
            session.typed_variables.first = 2

    assert [event.parity for event in events] == [
        typed.Parity.ODD, typed.Parity.EVEN, typed.Parity.ODD, typed.Parity.EVEN, typed.Parity.ODD,
    ]  # fmt: skip
    assert all(isinstance(event, typed.CallEvent) for event in events)
    assert all(isinstance(event.parity, typed.Parity) for event in events)
    assert {(each.call.port, each.call.class_, each.negative) for each in events} == {(443, 9, -5)}
    assert {event.header.type for event in events} == {7}
    assert {event.comm for event in events} == {Path("/proc/self/comm").read_text().rstrip()}
    assert (count.calls, count.last, count.comm) == (104, typed.Parity.ODD, "nobody")
    assert [(key.port, key.class_) for key in keys] == [(443, 9)]
    assert (totals, seen) == ([2, 3], 5)
