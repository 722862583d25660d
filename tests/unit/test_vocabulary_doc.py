"""docs/vocabulary.md is the table in the code: the same terms, names and order."""

from __future__ import annotations

import re
from pathlib import Path

from kerneltrace_core.exporters.logs import kernel_fields
from kerneltrace_core.exporters.vocabulary import TERMS
from kerneltrace_core.requests import KernelStats

DOCUMENT = (Path(__file__).parents[2] / "docs" / "vocabulary.md").read_text()
UNITS = {"ns": "ns", "bytes": "bytes", "count": "count", "flag": "true/false"}


def rows(header: str) -> list[list[str]]:
    """Return the cells of the table whose first column is called so, without back quotes."""
    table = DOCUMENT.split(f"| {header} |", 1)[1].split("\n\n", 1)[0]
    lines = table.splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_the_document_has_every_term_with_its_names() -> None:
    documented = [(row[0], *row[2:]) for row in rows("field")]

    assert documented == [
        (term.field, UNITS[term.unit], term.log_key, term.token or "", term.otel, term.prometheus)
        for term in TERMS
    ]


def test_every_term_has_a_meaning() -> None:
    assert [row[0] for row in rows("field") if not row[1]] == []


def test_the_document_has_every_key_of_a_log_record() -> None:
    documented = {row[3] for row in rows("field")}
    for row in rows("attribute"):
        first, *more = re.findall(r"\w+", row[1])
        documented |= {first} | {
            name if name.startswith("kernel") else first.replace("_wall_ms", name) for name in more
        }

    assert documented == set(kernel_fields(KernelStats.off()))
