"""The diagnosis as aligned text, with one fix line under each no."""

from __future__ import annotations

from collections.abc import Iterator

from kerneltrace_core.doctor.diagnosis import Diagnosis, Finding, System
from kerneltrace_core.kernel.support import Verdict

__all__ = ["as_text"]

WORDS = {Verdict.YES: "works", Verdict.NO: "NO", Verdict.UNKNOWN: "unsure"}
INFORMATION_WORDS = {Verdict.YES: "ok", Verdict.NO: "no", Verdict.UNKNOWN: "unsure"}

NAME_WIDTH = 20
WORD_WIDTH = 7

LAST_LINES = {
    Verdict.YES: "All works.",
    Verdict.NO: "Something is missing: see the fix lines.",
    Verdict.UNKNOWN: "Could not tell everything.",
}


def as_text(diagnosis: Diagnosis) -> str:
    """Return the report, without a newline at its end."""
    return "\n".join(_lines(diagnosis))


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    system = diagnosis.system
    yield (
        f"kerneltrace doctor: Linux {system.kernel} {system.machine}, "
        f"Python {system.python}, uid {system.uid}"
    )
    for title, findings, words in (
        ("probe groups", diagnosis.groups, WORDS),
        ("needed by all groups", diagnosis.needs, WORDS),
        ("for information", diagnosis.information, INFORMATION_WORDS),
    ):
        yield ""
        yield title
        for finding in findings:
            yield from _finding_lines(finding, words)
    if system.missing_capabilities:
        yield ""
        yield from _how_to_give(system)
    yield ""
    chosen = diagnosis.backend
    probably = "" if chosen.certain else " (not certain)"
    because = f": {chosen.reason}" if chosen.reason else ""
    yield f'backend="auto" chooses {chosen.name}{probably}{because}'
    for name, value in system.overrides.items():
        yield f"but {name}={value} is set in this shell"
    yield LAST_LINES[diagnosis.verdict]


def _finding_lines(finding: Finding, words: dict[Verdict, str]) -> Iterator[str]:
    support = finding.support
    line = f"  {finding.name:{NAME_WIDTH}}{words[support.verdict]:{WORD_WIDTH}}{support.reason}"
    yield line.rstrip()
    if support.verdict is not Verdict.YES and support.remedy:
        yield f"  {'':{NAME_WIDTH}}{'fix:':{WORD_WIDTH}}{support.remedy}"


def _how_to_give(system: System) -> Iterator[str]:
    upper = [name.upper() for name in system.missing_capabilities]
    short = [name.removeprefix("cap_") for name in system.missing_capabilities]
    plus = ",".join(f"+{name}" for name in short)
    yield f"how to give {', '.join(upper)} to the server (one of)"
    for where, what in (
        ("systemd", f"[Service] AmbientCapabilities={' '.join(upper)}"),
        ("docker", " ".join(f"--cap-add {name.upper()}" for name in short) + " *"),
        (
            "kubernetes",
            f"securityContext.capabilities.add: [{', '.join(n.upper() for n in short)}] *",
        ),
        (
            "shell, as root",
            f"setpriv --reuid=USER --regid=GROUP --init-groups --inh-caps={plus} "
            f"--ambient-caps={plus} -- CMD",
        ),
        (
            "one interpreter",
            f"setcap {','.join(system.missing_capabilities)}=ep PYTHON"
            " (a copy of its own: every script it runs gets them)",
        ),
    ):
        yield f"  {where:{NAME_WIDTH}}{what}"
    yield "  * a container user other than root needs setcap on the image's interpreter too"
    if system.no_new_privs:
        yield "  no_new_privs is set on this process: setcap has no effect under it"
    if system.bounded:
        yield "  not in this process's bounding set: only what started it (unit, container) can"
