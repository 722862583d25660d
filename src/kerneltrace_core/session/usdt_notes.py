"""Static tracepoints in a binary: what its .note.stapsdt says, and what their arguments mean."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from kerneltrace_core.btf.elf import Elf
from kerneltrace_core.errors import FormatError

__all__ = ["StaticTracepoint", "UsdtArgument", "parse_argument", "parse_notes", "split_arguments"]

# https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation
SECTION = ".note.stapsdt"
BASE = ".stapsdt.base"
OWNER = b"stapsdt\0"
NOTE_TYPE = 3


@dataclass(frozen=True)
class StaticTracepoint:
    """One place of a static tracepoint; offsets in bytes from the file's beginning. Immutable.

    ``semaphore`` is the offset of the counter that switches it on, 0 if it is always on;
    ``arguments`` the text of the note, ``-4@112(%rsp) 8@%rax``.
    """

    provider: str
    name: str
    offset: int
    semaphore: int
    arguments: str


def parse_notes(data: bytes, path: str = "file") -> tuple[StaticTracepoint, ...]:
    """Parse the static tracepoints of an ELF file; none if it has no such notes. Pure.

    Raises FormatError on what is malformed.
    """
    elf = Elf.parse(data, path)
    base = elf.section(BASE)
    found: list[StaticTracepoint] = []
    for section in elf.sections:
        if section.name == SECTION:
            found.extend(_parse_section(elf, section.data, base.address if base else 0, path))
    return tuple(found)


def _parse_section(elf: Elf, notes: bytes, base: int, path: str) -> list[StaticTracepoint]:
    order = "<" if elf.little else ">"
    header = struct.Struct(order + "III")
    addresses = struct.Struct(order + ("QQQ" if elf.bits == 64 else "III"))
    found = []
    at = 0
    while at + header.size <= len(notes):
        owner_size, size, kind = header.unpack_from(notes, at)
        owner_at = at + header.size
        content_at = owner_at + _padded(owner_size)
        end = content_at + size
        if end > len(notes):
            raise FormatError(
                f"parse {path}: note at 0x{at:x} of {SECTION} ends behind the section"
            )
        if kind == NOTE_TYPE and notes[owner_at : owner_at + owner_size] == OWNER:
            if size < addresses.size:
                raise FormatError(f"parse {path}: note at 0x{at:x} of {SECTION} is cut short")
            place, note_base, semaphore = addresses.unpack_from(notes, content_at)
            texts = notes[content_at + addresses.size : end].split(b"\0")
            if len(texts) < 3:
                raise FormatError(f"parse {path}: note at 0x{at:x} of {SECTION} has no names")
            # A linker that moved the code did not look into the notes; the base tells how far.
            moved = base - note_base if base else 0
            found.append(
                StaticTracepoint(
                    texts[0].decode("utf-8", "replace"),
                    texts[1].decode("utf-8", "replace"),
                    elf.file_offset(place + moved),
                    elf.file_offset(semaphore + moved) if semaphore else 0,
                    texts[2].decode("utf-8", "replace"),
                )
            )
        at = content_at + _padded(size)
    return found


def _padded(size: int) -> int:
    return (size + 3) & ~3


# ---- arguments ------------------------------------------------------------------


@dataclass(frozen=True)
class UsdtArgument:
    """Where one argument is. Immutable.

    ``size`` in bytes; ``register`` without its per cent sign, None: ``value`` is the argument
    itself; ``in_memory``: at ``value`` bytes from where the register points, plus ``scale`` times
    the register ``index`` if there is one.
    """

    size: int
    signed: bool
    register: str | None
    value: int
    in_memory: bool
    index: str | None = None
    scale: int = 1


SIZE = r"(?P<sign>-?)(?P<size>[1248])@"
FORMS = (
    re.compile(SIZE + r"\$(?P<value>-?\w+)$"),
    re.compile(
        SIZE + r"(?P<value>-?\w+)?\(%(?P<memory>\w+)(?:,%(?P<index>\w+)(?:,(?P<scale>[1248]))?)?\)$"
    ),  # x86
    re.compile(SIZE + r"%(?P<register>\w+)$"),
    re.compile(SIZE + r"\[(?P<memory>\w+)(?:,\s*#?(?P<value>-?\w+))?\]$"),  # arm64
    re.compile(SIZE + r"(?P<value>-?\d\w*)$"),
    re.compile(SIZE + r"(?P<register>[a-z]\w*)$"),
)
# What compilers write too.
UNREADABLE = (
    (re.compile(r"^-?\d+f@"), "a floating point number, which BPF does not have"),
    (re.compile(r"\(,"), "memory at an index alone, for which bpf_usdt_arg() has no form"),
    (re.compile(r"\(%[re]ip\)"), "memory at a symbol, whose address only the linker knew"),
)
SPLIT = re.compile(r"-?[0-9]+f?@(?:\[[^\]]*\]|[^\s\[]+)+")


def split_arguments(text: str) -> list[str]:
    """Part ``-4@112(%rsp) 8@[sp, 8]`` into its arguments. Pure."""
    return SPLIT.findall(text)


def parse_argument(text: str) -> UsdtArgument:
    """Parse one argument; raises FormatError for a form that BPF cannot read. Pure."""
    for form in FORMS:
        found = form.match(text)
        if found is None:
            continue
        parts = found.groupdict()
        try:
            value = int(parts.get("value") or "0", 0)
        except ValueError:
            break
        memory = parts.get("memory")
        register = memory or parts.get("register")
        return UsdtArgument(
            int(parts["size"]),
            bool(parts["sign"]),
            register,
            value,
            bool(memory),
            parts.get("index"),
            int(parts.get("scale") or 1),
        )
    why = next((why for form, why in UNREADABLE if form.search(text)), "")
    raise FormatError(
        f"parse USDT argument {text}: "
        + (why or "neither a constant, a register, nor memory at a register")
    )
