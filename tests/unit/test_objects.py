"""BPF programs of tests are compiled once for each content, whoever asks."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from harness import objects

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="BPF objects are compiled on Linux"
)

SOURCE = "int answer = 42;\n"


@pytest.fixture
def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for tests/probes, beside an empty cache."""
    folder = tmp_path / "probes"
    folder.mkdir()
    monkeypatch.setattr(objects, "ROOT", Path("/"))
    monkeypatch.setattr(objects, "PROBES", folder)
    monkeypatch.setattr(objects, "CACHE", tmp_path / "cache")
    (folder / "one.bpf.c").write_text(SOURCE)
    return folder


def test_the_same_content_is_compiled_once(probes: Path) -> None:
    first = objects.compile_object("one")
    written = first.stat().st_mtime_ns

    again = objects.compile_object("one")

    assert again == first
    assert again.stat().st_mtime_ns == written
    assert first.name == "one.bpf.o"
    assert first.read_bytes()[:4] == b"\x7fELF"


def test_a_changed_source_or_header_or_option_is_another_object(probes: Path) -> None:
    found = [objects.compile_object("one"), objects.compile_object("one", "-mcpu=v2")]
    (probes / "one.bpf.c").write_text(SOURCE + "int other = 1;\n")
    found.append(objects.compile_object("one"))
    (probes / "new.h").write_text("")
    found.append(objects.compile_object("one"))

    assert len(set(found)) == 4


def test_threads_that_ask_at_once_get_one_file(probes: Path) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(objects.compile_object("one")))
        for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 4
    assert len(set(found)) == 1


def test_what_does_not_compile_is_told_in_the_words_of_clang(probes: Path) -> None:
    (probes / "wrong.bpf.c").write_text("int broken(void) { return missing; }\n")

    with pytest.raises(AssertionError, match="undeclared identifier 'missing'"):
        objects.compile_object("wrong")
