"""The parts of the test on a bare Debian that need none."""

from __future__ import annotations

from pathlib import Path

import pytest
from debian_root import acquire_settings, local_paths, parse_mirror, parse_pip_settings
from run_fresh import commands_of, packages_of, what_went_wrong


def test_pips_settings_become_its_environment() -> None:
    listing = (
        ":env:.default-timeout='180'\n"
        "global.extra-index-url='file:///a/simple\\nfile:///b/simple'\n"
        "install.no-cache-dir='true'\n"
    )

    assert parse_pip_settings(listing) == {
        "PIP_DEFAULT_TIMEOUT": "180",
        "PIP_EXTRA_INDEX_URL": "file:///a/simple file:///b/simple",
        "PIP_NO_CACHE_DIR": "true",
    }


def test_what_the_settings_name_is_bound_once(tmp_path: Path) -> None:
    (tmp_path / "index" / "simple").mkdir(parents=True)
    (tmp_path / "wheels" / "inner").mkdir(parents=True)
    settings = {
        "PIP_EXTRA_INDEX_URL": f"file://{tmp_path}/index/simple https://elsewhere.example/simple",
        "PIP_FIND_LINKS": f"{tmp_path}/wheels {tmp_path}/wheels/inner {tmp_path}/none",
        "PIP_TIMEOUT": "180",
    }

    assert local_paths(settings) == [tmp_path / "index", tmp_path / "wheels"]


def test_the_mirror_is_the_one_that_apt_uses() -> None:
    targets = "http://a.example/node\nhttp://m.example/debian-security\nhttp://m.example/debian/\n"

    assert parse_mirror(targets) == "http://m.example/debian"
    with pytest.raises(LookupError, match="none"):
        parse_mirror("http://a.example/node\n")


@pytest.mark.parametrize(
    ("command", "status", "output", "wrong"),
    [
        ("make demo", 0, "attribution exact\n", None),
        ("make demo", 0, "attribution none\n", "the demo did not trace"),
        ("make demo", 2, "attribution exact\n", "exit status 2"),
        ("make test", 0, "1 skipped, 3 passed in 1s\n", None),
        ("make test", 0, "3 passed in 1s\nmore\n", "pytest's closing line is not the last one"),
    ],
)
def test_a_command_must_do_what_the_readme_promises(
    command: str, status: int, output: str, wrong: str | None
) -> None:
    assert what_went_wrong(command, status, output) == wrong


def test_the_arguments_reach_pytest() -> None:
    assert commands_of(None, "")[:2] == ["make demo", "make test"]
    assert commands_of(None, "-k 'a b'")[1] == """make test ARGS='-k '"'"'a b'"'"''"""
    assert commands_of("3.14", "-x") == [
        "make test-unit PYTHON=/usr/bin/python3.14 ARGS=-x",
        "make test-kernel PYTHON=/usr/bin/python3.14 ARGS=-x",
    ]
    assert packages_of(None) == ()
    assert "python3.14-venv" in packages_of("3.14")


def test_apt_fetches_as_it_does_here() -> None:
    dump = (
        'Acquire "";\nAcquire::Check-Valid-Until "false";\nAcquire::Languages:: "en";\n'
        'Acquire::https::CaInfo "/ca";\n'
    )

    assert acquire_settings(dump) == (
        'Acquire::Check-Valid-Until "false";\nAcquire::https::CaInfo "/ca";\n'
    )
