"""The last requests in memory, and the sockets on which other processes ask for them."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from django_site import configure
from fake_tracer import ALL, FakeRecord
from kerneltrace_core.requests import engine
from kerneltrace_django import recent
from kerneltrace_django import settings as django_settings
from kerneltrace_django.current import RequestStats
from kerneltrace_django.db import DatabaseStats
from kerneltrace_django.recent import recent_requests
from kerneltrace_django.recent_socket import RecentServer, ask, ask_all
from kerneltrace_django.recent_table import table

configure()

MS = 1_000_000

Settings = Callable[..., None]


def remember(request: Any, known: RequestStats, status_code: int | None = None) -> None:
    recent.remember(django_settings.options(), request, known, status_code)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Return a function that sets the two options for the test."""

    def choose(**given: Any) -> None:
        chosen = SimpleNamespace(**{"recent_requests": 3, "recent_socket": None, **given})
        monkeypatch.setattr(django_settings, "options", lambda: chosen)

    recent.stop()
    yield choose
    recent.stop()


def request(path: str = "/a", route: str | None = "a") -> Any:
    match = None if route is None else SimpleNamespace(route=route)
    return SimpleNamespace(method="GET", path=path, resolver_match=match)


def stats(wall_ms: int = 12) -> RequestStats:
    record = FakeRecord(value=2)
    record.spend((wall_ms - 2) * MS)
    record.block_on("disk", 2 * MS)
    record.call("read", ns=1000)
    known = RequestStats(record, ALL)
    known.freeze(record.close())
    known.record = None
    return known


def test_the_last_requests_are_remembered_and_no_more(settings: Settings) -> None:
    settings()

    for number in range(5):
        remember(request(f"/{number}"), stats(), status_code=200)

    assert [each.path for each in recent_requests()] == ["/2", "/3", "/4"]
    assert recent_requests()[0].status_code == 200
    assert abs(recent_requests()[0].time - time.time()) < 60


def test_a_request_without_a_url_of_its_own_has_no_route(settings: Settings) -> None:
    settings()

    remember(request("/x", None), stats())

    assert [(each.path, each.route) for each in recent_requests()] == [("/x", None)]


def test_none_is_remembered_when_none_is_asked_for(settings: Settings, tmp_path: Path) -> None:
    settings(recent_requests=0, recent_socket=str(tmp_path / "run"))

    remember(request(), stats())

    assert recent_requests() == []
    assert not (tmp_path / "run").exists()


def test_a_process_answers_with_what_its_log_records_say(
    settings: Settings, open_tmp_path: Path
) -> None:
    folder = open_tmp_path / "run"
    settings(recent_socket=str(folder))
    known = stats()
    known.db = {"default": DatabaseStats(2, 5 * MS, 100, 50, 0, 0)}

    remember(request(), known, status_code=404)
    ((path, answer),) = ask_all(str(folder))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert isinstance(answer, dict)
    assert answer["pid"] == os.getpid()
    (told,) = answer["requests"]
    assert (told["method"], told["path"], told["route"], told["status_code"]) == (
        *("GET", "/a", "a"),
        404,
    )
    assert told["kernel_wall_ms"] == 12.0
    assert told["kernel_blocked_by"] == {"disk_ms": 2.0}
    assert told["db"]["default"]["queries"] == 2


def test_a_forked_process_answers_for_itself_and_leaves_its_parents_socket(
    settings: Settings, open_tmp_path: Path
) -> None:
    folder = open_tmp_path / "run"
    settings(recent_socket=str(folder))
    remember(request("/parent"), stats())
    ready, done = os.pipe(), os.pipe()

    pid = os.fork()
    if pid == 0:
        try:
            assert recent_requests() == []
            remember(request("/child"), stats())
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            recent.stop()
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    both = list(ask_all(str(folder)))
    os.write(done[1], b"x")
    os.waitpid(pid, 0)
    alone = list(ask_all(str(folder)))
    for end in (*ready, *done):
        os.close(end)

    found = {answer["pid"]: answer["requests"][0]["path"] for _, answer in both}  # type: ignore[index]
    assert found == {os.getpid(): "/parent", pid: "/child"}
    assert [answer["pid"] for _, answer in alone] == [os.getpid()]  # type: ignore[index]


def test_what_a_killed_process_left_is_taken_away(open_tmp_path: Path) -> None:
    left = open_tmp_path / "1-00000000.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))

    assert list(ask_all(str(open_tmp_path))) == []
    assert not left.exists()


def test_one_that_does_not_answer_is_told_and_others_are_asked(
    settings: Settings, open_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kerneltrace_django.recent_socket.ASK_SECONDS", 0.1)
    folder = open_tmp_path / "run"
    settings(recent_socket=str(folder))
    remember(request(), stats())
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / "0-silent.sock"))
        silent.listen()
        answers = [answer for _, answer in ask_all(str(folder))]

    assert isinstance(answers[0], TimeoutError)
    assert isinstance(answers[1], dict)


def test_after_the_end_the_socket_is_gone_and_its_thread_too(open_tmp_path: Path) -> None:
    import threading

    before = set(threading.enumerate())
    server = RecentServer.open(str(open_tmp_path / "run"), list)
    assert ask(server.path) == {"pid": os.getpid(), "requests": []}
    begun = set(threading.enumerate()) - before
    assert begun

    server.close()
    server.close()

    until = time.monotonic() + 10
    while any(thread.is_alive() for thread in begun) and time.monotonic() < until:
        time.sleep(0.01)
    assert not [thread for thread in begun if thread.is_alive()]
    assert list((open_tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o730])
def test_a_folder_that_others_may_write_to_is_refused_with_one_warning(
    settings: Settings, open_tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = open_tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    settings(recent_socket=str(folder))

    for _ in range(3):
        remember(request(), stats())

    assert len(recent_requests()) == 3
    assert list(folder.iterdir()) == []
    (record,) = caplog.records
    assert "others may write to the folder" in record.getMessage()


def test_a_folder_that_cannot_be_is_one_warning(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings(recent_socket="/dev/null/run")

    for _ in range(3):
        remember(request(), stats())

    (record,) = caplog.records
    assert "KERNELTRACE['RECENT_SOCKET']" in record.getMessage()


def test_a_user_that_is_neither_this_nor_root_gets_no_answer(
    settings: Settings, open_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kerneltrace_django.recent_socket._uid_of", lambda _peer: 4711)
    folder = open_tmp_path / "run"
    settings(recent_socket=str(folder))
    remember(request(), stats())

    ((_, answer),) = ask_all(str(folder))

    assert isinstance(answer, PermissionError)


def test_the_thread_that_answers_works_for_no_request(
    settings: Settings, open_tmp_path: Path
) -> None:
    asked: list[Any] = []
    settings(recent_socket=str(open_tmp_path / "run"))
    remember(request(), stats())

    def documents() -> list[dict[str, Any]]:
        asked.append(engine.current())
        return []

    server = RecentServer.open(str(open_tmp_path / "run"), documents)
    ask(server.path)
    server.close()

    assert asked == [None]


def test_the_table_has_a_line_for_each_request() -> None:
    known = stats()
    known.db = {"default": DatabaseStats(2, 5 * MS, 100, 50, 0, 0), "other": DatabaseStats(1)}
    document = recent.RecentRequest(0.25, "GET", "/a" * 40, None, None, known).as_document()

    lines = table([{"pid": 7, **document}]).splitlines()

    headings = "time pid request status ms cpu queue blocked loop wait calls queries db"
    assert " ".join(lines[0].split()) == headings
    assert lines[1].split()[1:] == [
        *("7", "GET", "/a" * 18 + "/...", "-", "12.0", "10.0", "0.0", "2.0", "disk", "0.0"),
        *("1", "3", "5.0"),
    ]


def test_the_table_shows_what_is_unknown_as_a_dash() -> None:
    off = RequestStats.off()
    document = recent.RecentRequest(0.25, "GET", "/", None, 200, off).as_document()

    told = json.loads(json.dumps({"pid": 7, **document}))

    assert table([told]).splitlines()[1].split()[3:] == ["/", "200"] + ["-"] * 8
