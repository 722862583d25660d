"""ImportWatch on modules made for the test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneltrace_core.requests.imports import ImportWatch

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("watched_one", "unwatched_one"):
        (tmp_path / f"{name}.py").write_text("value = 7\n")
    (tmp_path / "watched_broken.py").write_text("raise ValueError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("watched_one", "unwatched_one", "watched_broken"):
        sys.modules.pop(name, None)


def test_a_watched_module_is_whole_when_its_import_is_heard_of() -> None:
    heard: list[int] = []
    watch = ImportWatch(["watched_one"], lambda: heard.append(sys.modules["watched_one"].value))
    watch.install()
    try:
        importlib.import_module("unwatched_one")
        assert heard == []
        module = importlib.import_module("watched_one")
    finally:
        watch.remove()

    assert heard == [7]
    assert module.__spec__ is not None
    assert "exec_module" not in vars(module.__spec__.loader)


def test_a_module_that_fails_to_import_is_not_heard_of() -> None:
    heard: list[int] = []
    watch = ImportWatch(["watched_broken"], lambda: heard.append(1))
    watch.install()
    try:
        with pytest.raises(ValueError, match="broken"):
            importlib.import_module("watched_broken")
    finally:
        watch.remove()

    assert heard == []


def test_nothing_is_left_of_a_watch_that_was_removed_or_has_nothing_to_wait_for() -> None:
    before = list(sys.meta_path)
    watch = ImportWatch(["watched_one"], lambda: None)
    watch.install()
    watch.install()
    assert len(sys.meta_path) == len(before) + 1
    watch.remove()
    watch.remove()
    assert sys.meta_path == before

    ImportWatch(["sys"], lambda: None).install()
    assert sys.meta_path == before
