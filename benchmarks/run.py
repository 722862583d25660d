"""Measure what tracing costs: all benchmarks, or those that are named.

A full run writes benchmarks/results.json and docs/performance.md, from performance.md.in;
a quick one only prints.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# As a script, this folder is on the path, and not the one that it is a package of.
sys.path[0] = str(ROOT)

from benchmarks import document, machine  # noqa: E402
from benchmarks.rounds import FULL, QUICK, SMOKE, Result, Size, Unavailable  # noqa: E402

NAMES = (
    "steps",
    "request_in_process",
    "syscall",
    "switch",
    "joined",
    "boot",
    "server",
    "django_server",
    "events",
)
RESULTS = ROOT / "benchmarks" / "results.json"


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 if a benchmark could not be run. A missed budget is told, and no failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"any of: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="one minute, coarse, writes nothing")
    parser.add_argument("--smoke", action="store_true", help="only see whether they run")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))} (there are {', '.join(NAMES)})")
    size = SMOKE if given.smoke else QUICK if given.quick else FULL
    names = [name for name in NAMES if name in given.names or not given.names]
    measured = {name: found for name in names if (found := _measure(name, size)) is not None}
    if size is FULL and measured:
        _write(measured)
        print(f"written: {RESULTS.relative_to(ROOT)}, {document.PAGE.relative_to(ROOT)}")
    return 0 if len(measured) == len(names) else 1


def _measure(name: str, size: Size) -> dict[str, Any] | None:
    print(f"== {name}", flush=True)
    begin = time.monotonic()
    try:
        result: Result = importlib.import_module(f"benchmarks.{name}").run(size)
    except Unavailable as error:
        print(f"   left out: {error}", flush=True)
        return None
    for line in document.plain_table(result.figures):
        print(f"   {line}")
    for note in result.notes:
        print(f"   note: {note}")
    print(f"   ({time.monotonic() - begin:.0f} s)", flush=True)
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine.describe(),
        "figures": {name: figure.as_dict() for name, figure in result.figures.items()},
        "notes": result.notes,
        "samples": _rounded(result.samples),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [float(f"{each:.5g}") for each in value]


def _write(measured: dict[str, Any]) -> None:
    """Keep what was not measured now; each benchmark has a date and a machine of its own."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results = {name: measured.get(name) or before.get(name) for name in NAMES}
    results = {name: each for name, each in results.items() if each is not None}
    RESULTS.write_text(_dump(results))
    document.write(results)


def _dump(results: dict[str, Any]) -> str:
    """Return JSON with a line for each series of samples, not one for each number."""
    text = json.dumps(results, indent=1)
    lines: list[str] = []
    joining = False
    for line in text.splitlines():
        if joining:
            lines[-1] += line.strip() + ("" if line.strip().startswith("]") else " ")
            joining = not line.strip().startswith("]")
        else:
            lines.append(line)
            joining = line.endswith("[")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
