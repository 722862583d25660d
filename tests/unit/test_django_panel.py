"""The Debug Toolbar's panel: what it records of a request, what it shows, what it checks."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from django.template import Context, Engine
from django.test import override_settings

import kerneltrace_django
from django_site import configure
from fake_tracer import ALL, FakeRecord
from kerneltrace_core.requests import layout
from kerneltrace_core.requests.measures import Measures
from kerneltrace_django.current import RequestStats
from kerneltrace_django.db import DatabaseStats

configure()

from kerneltrace_django.panels import KernelPanel, describe  # noqa: E402 - needs the settings

MS = 1_000_000


class Toolbar:
    """What a panel needs of the toolbar, of versions 5 to 8."""

    def __init__(self) -> None:
        self.stats: dict[str, Any] = {}
        self.server_timing_stats: dict[str, Any] = {}
        self.request_id = "1"
        self.store = SimpleNamespace(save_panel=lambda *_: None)


def stats(measures: Measures = ALL) -> tuple[RequestStats, FakeRecord]:
    record = FakeRecord(value=2)
    record.spend(5 * MS, READ_BYTES=4096)
    record.block_on("disk", 12 * MS)
    record.block_on("net", 3 * MS)
    record.call("openat", ns=2 * MS)
    record.call("fsync", errors=1, ns=3 * MS)
    return RequestStats(record, measures), record


def panel_of(request: Any) -> KernelPanel:
    panel = KernelPanel(Toolbar(), lambda _request: None)
    panel.generate_stats(request, None)
    panel.generate_server_timing(request, None)
    return panel


def render(data: dict[str, Any]) -> str:
    folder = f"{next(iter(kerneltrace_django.__path__))}/templates"
    engine = Engine(dirs=[folder], libraries={"i18n": "django.templatetags.i18n"})
    return engine.get_template("kerneltrace_django/panel.html").render(Context(data))


def test_the_ledger_is_recorded_as_json_says_it() -> None:
    known, _ = stats()
    known.db = {"default": DatabaseStats(3, 8 * MS, 0, 0, 4096, 0)}

    panel = panel_of(SimpleNamespace(kerneltrace=known))
    data = panel.get_stats()

    assert json.loads(json.dumps(data)) == data
    assert panel.nav_subtitle == "15.0\u00a0ms blocked (disk)"
    assert [(part["key"], part["ms"], part["width"]) for part in data["ledgers"][0]["parts"]] == [
        ("cpu", 5.0, 250),
        ("blocked", 15.0, 750),
    ]
    assert [cause["name"] for cause in data["ledgers"][0]["causes"]] == ["disk", "network"]
    assert [call["name"] for call in data["syscalls"]["top"]] == ["fsync", "openat"]
    assert data["databases"][0]["percent"] == "40.0"


def test_the_parts_of_the_ledger_are_server_timings() -> None:
    panel = panel_of(SimpleNamespace(kerneltrace=stats()[0]))

    header = panel.get_headers(None)["Server-Timing"]

    assert header == (
        'KernelPanel_cpu;dur=5.0;desc="On CPU", KernelPanel_blocked;dur=15.0;desc="Blocked"'
    )


def test_work_on_other_threads_has_a_bar_of_its_own() -> None:
    known, record = stats()
    where = layout.BANK + layout.BANK_WORDS + layout.BLOCKED_NS + layout.CAUSES.index("net")
    record.words[where] = 30 * MS
    record.words[layout.THREAD_NS] = 40 * MS
    record.words[layout.THREADS_USED] = 1

    data = describe(known)

    assert data["subtitle"] == "30.0\u00a0ms blocked (net)"
    threads = data["ledgers"][1]
    assert threads["title"] == "40.0\u00a0ms on another thread"
    assert [(part["key"], part["width"]) for part in threads["parts"]] == [
        ("cpu", 250),
        ("blocked", 750),
    ]
    assert [cause["name"] for cause in threads["causes"]] == ["network"]
    assert "on another thread" in render(data)


def test_what_is_recorded_stays_when_the_request_goes_on() -> None:
    known, record = stats()
    panel = panel_of(SimpleNamespace(kerneltrace=known))
    before = json.dumps(panel.get_stats())

    record.spend(100 * MS)

    assert json.dumps(panel.get_stats()) == before


def test_the_page_shows_the_bar_and_the_tables() -> None:
    known, _ = stats()
    known.db = {"<replica>": DatabaseStats(3, None, None, None, None, None)}

    shown = render(describe(known))

    for words in ("20.0\u00a0ms", "On CPU", "Blocked by", "network", "fsync", "75.0%"):
        assert words in shown
    assert "&lt;replica&gt;" in shown
    assert "None" not in shown
    assert "style" not in shown.split("#}")[-1], "a Content-Security-Policy would stop it"


@pytest.mark.parametrize("request_", [SimpleNamespace(), SimpleNamespace(kerneltrace=None)])
def test_a_request_without_the_middleware_is_said_to_be_untraced(request_: Any) -> None:
    panel = panel_of(request_)

    assert panel.nav_subtitle == "not traced"
    assert panel.get_headers(None) == {}
    assert "not traced" in render(panel.get_stats())


def test_what_the_backend_does_not_measure_is_left_out() -> None:
    known, record = stats(Measures(backend="procfs", ledger=True))
    record.words[layout.BANK + layout.RUN_QUEUE_NS] = MS

    shown = render(describe(known))

    assert "Waiting for a CPU" in shown
    assert "system calls" not in shown
    assert "Blocked by" not in shown


def test_it_works_under_asgi() -> None:
    assert KernelPanel.is_async
    assert KernelPanel.has_content


# ---- checks --------------------------------------------------------------------------------


def ids() -> list[str]:
    return [found.id for found in KernelPanel.run_checks()]


def test_with_the_application_installed_there_is_nothing_to_say() -> None:
    assert ids() == []


def test_without_the_application_its_template_cannot_be_found() -> None:
    with override_settings(INSTALLED_APPS=[]):
        assert ids() == ["kerneltrace.W010"]


@pytest.mark.parametrize("switched", [{"ENABLED": False}, {"BACKEND": "off"}])
def test_a_panel_with_tracing_off_is_told(switched: dict[str, Any]) -> None:
    with override_settings(KERNELTRACE=switched):
        assert ids() == ["kerneltrace.W011"]
