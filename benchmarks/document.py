"""Tables for the terminal, and docs/performance.md from its template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.rounds import Figure

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "benchmarks" / "performance.md.in"
PAGE = ROOT / "docs" / "performance.md"
# {{machine}}, {{dates}}, {{table boot}}, {{table request_in_process never}}, {{boot.start}}
FIELD = re.compile(r"\{\{([^{}]+)\}\}")
MISSING = "not measured"
MISSED = "missed"


def number(value: float, unit: str) -> str:
    """Write a value with the digits that it deserves, and its unit."""
    if unit == "ratio":
        return f"{value:.1%}"
    if unit == "requests/s":
        return f"{value:,.0f}".replace(",", " ") + " /s"
    sign = "+" if unit.endswith(" added") and value >= 0 else ""
    digits = 0 if abs(value) >= 100 or unit.startswith("ns") else 1 if abs(value) >= 10 else 2
    return f"{sign}{value:.{digits}f} {unit.removesuffix(' added')}"


def spread(figure: Figure) -> str:
    """Write the quartiles, without the unit."""
    if figure.low is None or figure.high is None:
        return ""
    low, high = (number(each, figure.unit).split(" ")[0] for each in (figure.low, figure.high))
    if figure.unit == "requests/s":
        low, high = (number(each, figure.unit)[:-3] for each in (figure.low, figure.high))
    return f"{low} to {high}"


def budget(figure: Figure) -> str:
    """Write the budget and, if so, that it was missed."""
    if figure.budget is None:
        return ""
    sign = ">=" if figure.at_least else "<="
    text = f"{sign} {number(figure.budget, figure.unit)}"
    return text if figure.met else f"{text} {MISSED}"


def plain_table(figures: Mapping[str, Figure]) -> Iterator[str]:
    """Yield the lines of a table for the terminal."""
    wide = max(len(figure.label) for figure in figures.values())
    for figure in figures.values():
        value = number(figure.value, figure.unit)
        yield f"{figure.label:<{wide}} {value:>12}  {spread(figure):<19} {budget(figure)}".rstrip()


def markdown_table(figures: Iterable[Figure]) -> str:
    """Return a table in Markdown."""
    rows = ["| | median | quartiles | budget |", "|---|---:|---:|---|"]
    for figure in figures:
        verdict = budget(figure).replace(MISSED, f"**{MISSED}**")
        value = number(figure.value, figure.unit)
        rows.append(f"| {figure.label} | {value} | {spread(figure)} | {verdict} |")
    return "\n".join(rows)


def write(results: Mapping[str, Any]) -> None:
    """Write the page from results.json's content."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(TEMPLATE.read_text(), results))


def render(template: str, results: Mapping[str, Any]) -> str:
    """Fill a template; what was never measured is said to be so."""
    return FIELD.sub(lambda found: _field(found[1].split(), results), template)


def _field(words: list[str], results: Mapping[str, Any]) -> str:
    if words[0] == "machines":
        return _machines(results)
    if words[0] == "table":
        figures = _figures(results, words[1])
        prefix = f"{words[2]}_" if len(words) > 2 else ""
        chosen = [each for name, each in figures.items() if name.startswith(prefix)]
        return markdown_table(chosen) if chosen else f"({MISSING})"
    benchmark, _, name = words[0].partition(".")
    figure = _figures(results, benchmark).get(name)
    return MISSING if figure is None else number(figure.value, figure.unit)


def _figures(results: Mapping[str, Any], benchmark: str) -> dict[str, Figure]:
    kept = results.get(benchmark, {}).get("figures", {})
    return {
        name: Figure(**{key: value for key, value in each.items() if key != "met"})
        for name, each in kept.items()
    }


def _machines(results: Mapping[str, Any]) -> str:
    rows = ["| measured | on |", "|---|---|"]
    said: dict[str, list[str]] = {}
    for name, each in results.items():
        facts = each["machine"]
        where = (
            f"{facts['cpu']}, {facts['cpus']} CPUs{' (a virtual machine)' * facts['virtual']}, "
            f"{facts['memory_mib'] / 1024:.0f} GiB; Linux {facts['kernel']} "
            f"{facts['architecture']}; {facts['python']}; "
            + ", ".join(f"{key} {facts[key]}" for key in facts if key not in _SAID)
        )
        said.setdefault(where, []).append(f"{name} ({each['date']})")
    rows += [f"| {', '.join(names)} | {where} |" for where, names in said.items()]
    notes = [f"- {name}: {note}" for name, each in results.items() for note in each["notes"]]
    return "\n".join([*rows, *([""] if notes else []), *notes])


_SAID = ("cpu", "cpus", "virtual", "memory_mib", "kernel", "architecture", "python")
