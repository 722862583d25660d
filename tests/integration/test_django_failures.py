"""Whatever is wrong with its tracing, a Django project boots and serves, and `check` says why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.tiers import Require
from integration.served.servers import (
    ASGI,
    GUNICORN,
    KINDS,
    WSGI,
    Kind,
    environment,
    started,
)

pytestmark = pytest.mark.integration

UNITS = 17
BUSY, WORK = "/alone/-/busy", f"/alone/sync_view/0/{UNITS}"
SETTINGS = "project_settings"
NO_CAPABILITIES = ("setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all")
NO_BTF = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh")
SERVERS = {
    "gunicorn": Kind("gunicorn", f"{GUNICORN} --threads 4 {WSGI}", asgi=False),
    "uvicorn": Kind("uvicorn", f"--port {{port}} --log-level warning {ASGI}"),
}
NO_ISSUES = "System check identified no issues"


class Project:
    """A project of one settings file, and the command that everything of it runs behind."""

    def __init__(self, folder: Path, settings: str, before: tuple[str, ...], **variables: str):
        self.folder = folder
        self.before = before
        self.variables = {"DJANGO_SETTINGS_MODULE": SETTINGS, **variables}
        text = f"from integration.served.settings import *\n{settings}\n"
        (folder / f"{SETTINGS}.py").write_text(text)

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a management command."""
        return subprocess.run(
            [*self.before, sys.executable, "-m", "django", *arguments],
            cwd=self.folder,
            env=environment(self.folder, **self.variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def check(self, *arguments: str) -> str:
        """Return what `manage.py check` says of us, which is no error."""
        done = self.manage("check", "--tag", "kerneltrace", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def served(self, name: str) -> Iterator[Served]:
        with started(
            SERVERS[name], self.folder, before=self.before, ready=BUSY, **self.variables
        ) as server:
            yield Served(server)


class Served(NamedTuple):
    """The project under a server."""

    server: Any

    def status(self) -> int:
        """Ask for something, and return how that went."""
        status: int = self.server.ask(WORK).status
        return status

    def charged(self) -> dict[str, Any]:
        """Ask until a request is traced, and return its numbers."""
        for number in range(1000):
            path = f"/alone/sync_view/{number}/{UNITS}"
            assert self.server.ask(path).status == 200
            if rows := self.server.rows():
                found: dict[str, Any] = rows[0]["charged"]
                return found
        raise AssertionError(f"no request was traced\n{self.said()}")

    def said(self) -> str:
        text: str = self.server.said()
        return text


@pytest.fixture
def project(open_tmp_path: Path) -> Any:
    """Return a function that makes a project; its folder is open to any user."""

    def make(settings: str = "", before: tuple[str, ...] = (), **variables: str) -> Project:
        return Project(open_tmp_path, settings, before, **variables)

    return make


def warnings(said: str) -> list[str]:
    return [line for line in said.splitlines() if "KERNELTRACE" in line or "kernel tracing" in line]


@pytest.mark.parametrize("server", SERVERS)
def test_with_nothing_wrong_nothing_is_said(require: Require, project: Any, server: str) -> None:
    require("thread_registration")
    sound = project()

    with sound.served(server) as served:
        charged = served.charged()

        assert charged["backend"] == "bpf"
        assert warnings(served.said()) == []
    assert NO_ISSUES in sound.check()


# ---- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "telling", "number", "advice"),
    [
        ("['SLOW_REQEST_MS'] = 500", "SLOW_REQEST_MS", "W008", "mean 'SLOW_REQUEST_MS'?"),
        ("['SAMPLE_RATE'] = 'often'", "'often'", "W009", "default is used: 1.0"),
        ("['SERVER_TIMING'] = 'not.there'", "not.there", "W009", "default is used: False"),
    ],
)
def test_a_broken_setting_is_one_warning_and_the_rest_holds(
    require: Require, project: Any, settings: str, telling: str, number: str, advice: str
) -> None:
    require("thread_registration")
    broken = project(f"KERNELTRACE{settings}")

    with broken.served("gunicorn") as served:
        charged = served.charged()

        assert charged["backend"] == "bpf"
        assert charged["preadv2"] == UNITS
        (warning,) = warnings(served.said())
        assert telling in warning
    done = broken.manage("check", "--tag", "kerneltrace")
    assert done.returncode == 0
    assert f"kerneltrace.{number}" in done.stderr
    assert telling in done.stderr
    assert advice in done.stderr


@pytest.mark.parametrize("server", SERVERS)
def test_a_setting_that_is_no_dictionary_is_one_warning(project: Any, server: str) -> None:
    broken = project("KERNELTRACE = 'on'")

    with broken.served(server) as served:
        assert [served.status() for _ in range(20)] == [200] * 20
        (warning,) = warnings(served.said())
    assert "'on' is not a dictionary" in warning
    assert "kerneltrace.W009" in broken.manage("check").stderr


def test_a_broken_setting_stops_neither_runserver_nor_migrate(project: Any) -> None:
    broken = project(
        "KERNELTRACE['SLOW_REQEST_MS'] = 500\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}"
    )

    migrated = broken.manage("migrate")
    with started(KINDS["runserver"], broken.folder, ready=BUSY, **broken.variables) as server:
        assert server.ask(WORK).status == 200
        assert "kerneltrace.W008" in server.said()
    assert migrated.returncode == 0, migrated.stderr
    assert "kerneltrace.W008" in migrated.stderr


def test_a_slip_in_the_environment_stops_no_command(project: Any) -> None:
    broken = project(KERNELTRACE_BACKED="bpf")

    with broken.served("gunicorn") as served:
        assert served.status() == 200
        (warning,) = warnings(served.said())
    assert "KERNELTRACE_BACKED" in warning
    said = broken.check()
    assert "kerneltrace.W007" in said
    assert "did you mean KERNELTRACE_BACKEND" in said


def test_functions_of_the_settings_that_fail_never_reach_a_request(project: Any) -> None:
    broken = project(
        "def fail(*_): raise KeyError('the function of the settings')\n"
        "KERNELTRACE = {'BACKEND': 'procfs', 'ON_REQUEST': fail, 'SERVER_TIMING': fail}"
    )

    with broken.served("gunicorn") as served:
        assert [served.status() for _ in range(20)] == [200] * 20
        assert served.said().count("the function of the settings") <= 4


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ("MIDDLEWARE = []", "W001"),
        ("MIDDLEWARE *= 2", "W002"),
        ("MIDDLEWARE = ['django.middleware.common.CommonMiddleware', *MIDDLEWARE]", "W003"),
    ],
)
def test_a_middleware_in_the_wrong_place_is_told(project: Any, settings: str, number: str) -> None:
    assert f"kerneltrace.{number}" in project(settings).check()


def test_without_the_installed_app_requests_are_traced_all_the_same(
    require: Require, project: Any
) -> None:
    require("thread_registration")

    with project("INSTALLED_APPS = []").served("gunicorn") as served:
        assert served.charged()["preadv2"] == UNITS


# ---- privileges and kernels --------------------------------------------------------------------


@pytest.mark.parametrize("server", SERVERS)
def test_without_privileges_the_numbers_come_from_proc(project: Any, server: str) -> None:
    poor = project("KERNELTRACE['BACKEND'] = 'auto'", NO_CAPABILITIES)

    with poor.served(server) as served:
        charged = served.charged()

        assert charged["backend"] == "procfs"
        (warning,) = warnings(served.said())
    assert "CAP_BPF, CAP_PERFMON missing" in warning
    assert "counting from /proc instead" in warning
    said = poor.check()
    assert "kerneltrace.W004" in said
    assert "CAP_BPF" in said
    assert "kerneltrace.W006" not in said
    assert "kerneltrace.W006" in poor.check("--deploy")


def test_on_a_kernel_without_btf_check_says_so(require: Require, project: Any) -> None:
    require("capability:cap_sys_admin")
    poor = project(before=NO_BTF)

    with poor.served("gunicorn") as served:
        assert served.charged()["backend"] == "procfs"
    assert "CONFIG_DEBUG_INFO_BTF" in poor.check()


@pytest.mark.parametrize("server", SERVERS)
def test_required_without_privileges_answers_with_errors_and_check_says_why(
    project: Any, server: str
) -> None:
    poor = project(
        "KERNELTRACE['REQUIRED'] = True\n"
        "LOGGING = {'version': 1, 'handlers': {'console': {'class': 'logging.StreamHandler'}},"
        " 'loggers': {'django.request': {'handlers': ['console']}}}",
        NO_CAPABILITIES,
    )

    with poor.served(server) as served:
        assert [served.status() for _ in range(3)] == [500] * 3
        assert "ImproperlyConfigured" in served.said()
        assert "CAP_BPF, CAP_PERFMON missing" in served.said()
    assert "every request will be answered with an error" in poor.check()


@pytest.mark.parametrize("server", SERVERS)
def test_the_kill_switch_beats_everything_and_says_nothing(project: Any, server: str) -> None:
    switched = project("KERNELTRACE['REQUIRED'] = True", NO_CAPABILITIES, KERNELTRACE_ENABLED="0")

    with switched.served(server) as served:
        assert [served.status() for _ in range(20)] == [200] * 20
        assert served.server.rows() == []
        assert warnings(served.said()) == []
    assert NO_ISSUES in switched.check()
