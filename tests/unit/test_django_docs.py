"""docs/django.md has every setting with its default, and every check, and no others."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from kerneltrace_django.settings import DjangoOptions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "django.md").read_text()
SETTING = re.compile(r"^\| `([A-Z_]+)` \| `(.+?)` \|", re.MULTILINE)
CHECK = re.compile(r"^\| `kerneltrace\.([EW]\d+)` \|", re.MULTILINE)
CHECK_IN_SOURCE = re.compile(r"""["'.]([EW]\d{3})["']""")
LEVELS = {20: "INFO"}


def test_the_table_of_settings_is_that_of_the_code() -> None:
    defaults = {each.name.upper(): each.default for each in fields(DjangoOptions)}
    defaults["LOG_LEVEL"] = LEVELS[DjangoOptions().log_level]

    assert {key: repr(default).replace("'", '"') for key, default in defaults.items()} == dict(
        SETTING.findall(PAGE)
    )


def test_the_table_of_checks_has_every_id() -> None:
    sources = (ROOT / "src" / "kerneltrace_django").glob("*.py")

    ids = {found for source in sources for found in CHECK_IN_SOURCE.findall(source.read_text())}

    assert ids == set(CHECK.findall(PAGE))
