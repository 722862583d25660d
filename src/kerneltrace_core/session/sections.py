"""Read section names: the probe that SEC("kprobe/vfs_read") stands for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from kerneltrace_core.errors import OptionError
from kerneltrace_core.session import kernel_probes as kernel
from kerneltrace_core.session import process_probes as process
from kerneltrace_core.session.probe import Probe

__all__ = ["BySection", "probe_of_section"]

# libbpf knows how to attach these, and nothing here does.
LEFT_TO_LIBBPF = ("ksyscall", "kretsyscall", "kprobe.multi", "kretprobe.multi")

NAMED: dict[str, Callable[..., Probe]] = {
    section: probe
    for probe in (
        kernel.RawTracepoint, kernel.BtfTracepoint, kernel.Fentry, kernel.Fexit, kernel.FmodRet,
        kernel.Lsm, kernel.Kretprobe,
    )
    for section in probe.sections
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Probe]] = {
    section: probe for probe in (process.Uprobe, process.Uretprobe) for section in probe.sections
}
OFFSET = re.compile(r"(?P<name>.+?)(?:\+(?P<offset>0x[0-9a-fA-F]+|\d+))?$")


@dataclass(frozen=True)
class BySection(Probe):
    """Attach a program as libbpf reads its section; made by ``"auto"`` for what has no spec."""

    section: str

    kind: ClassVar[str] = "section"
    program_types: ClassVar[frozenset[int]] = frozenset({kernel.KPROBE})

    def target(self) -> str:
        """Return the section."""
        return self.section


def _offset(text: str) -> tuple[str, int]:
    found = OFFSET.match(text)
    if found is None:
        return text, 0
    return found["name"], int(found["offset"] or "0", 0)


def probe_of_section(name: str, section: str, *, optional: bool = False) -> Probe | None:
    """Return the probe that the section of program ``name`` stands for; None if for none. Pure."""
    prefix, _, target = section.removeprefix("?").partition("/")
    parts = target.split(":")
    try:
        if prefix in kernel.Tracepoint.sections and target.count("/") == 1:
            category, _, event = target.partition("/")
            return kernel.Tracepoint(category, event, program=name, optional=optional)
        if prefix in NAMED and target:
            return NAMED[prefix](target, program=name, optional=optional)
        if prefix in kernel.Kprobe.sections and target:
            function, offset = _offset(target)
            return kernel.Kprobe(function, offset, program=name, optional=optional)
        if prefix in FUNCTIONS and len(parts) == 2:
            symbol, offset = _offset(parts[1])
            return FUNCTIONS[prefix](parts[0], symbol, offset, program=name, optional=optional)
        if prefix in process.Usdt.sections and len(parts) == 3:
            return process.Usdt(parts[0], parts[1], parts[2], program=name, optional=optional)
        if prefix in LEFT_TO_LIBBPF and target:
            return BySection(section, program=name, optional=optional)
    except OptionError:
        return None
    return None
