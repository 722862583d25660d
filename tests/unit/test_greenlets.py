"""Threads that are greenlets are not traced: their numbers would be each other's."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from kerneltrace_core import UnsupportedError
from kerneltrace_core.requests import TracerOptions, greenlet_library
from kerneltrace_core.requests.backends import open_backend


@pytest.fixture
def gevent(monkeypatch: pytest.MonkeyPatch) -> None:
    patched = SimpleNamespace(is_module_patched=lambda name: name == "threading")
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)  # type: ignore[arg-type]


def test_no_library_is_named_where_threads_are_threads() -> None:
    assert greenlet_library() is None


def test_tracing_is_off_with_one_warning(gevent: None, caplog: pytest.LogCaptureFixture) -> None:
    assert open_backend(TracerOptions(backend="procfs")) is None

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "gevent.monkey has made greenlets of threads" in record.getMessage()


def test_required_tracing_refuses_to_start(gevent: None) -> None:
    with pytest.raises(UnsupportedError, match="use workers with threads, or asyncio"):
        open_backend(TracerOptions(required=True))
