"""What Python believes of the region is what the compiled part and its headers say."""

from __future__ import annotations

import ctypes
import re
import threading
from pathlib import Path

import pytest

from kerneltrace_core._native import lib
from kerneltrace_core.requests import engine, layout

pytestmark = [pytest.mark.kernel, pytest.mark.unprivileged]

INCLUDE = Path(__file__).parents[2] / "probes" / "include"
WORD = 8


@pytest.fixture(scope="module")
def header() -> str:
    return (INCLUDE / "kt_region.h").read_text()


def members(header: str, struct: str) -> dict[str, tuple[int, int]]:
    """Return name -> (offset in bytes, elements) of a struct whose members leave no gaps."""
    sizes = {"__u32": 4, "__u64": 8, "struct kt_bank": 128, "struct kt_call": 24}
    counts = {
        "KT_CAUSES": len(layout.CAUSES),
        "KT_BANKS": 2,
        "KT_CALLS": layout.CALLS,
        **{str(number): number for number in range(10)},
    }
    body = re.search(rf"struct {struct} \{{(.*?)\n\}};", header, re.DOTALL)
    assert body, struct
    found: dict[str, tuple[int, int]] = {}
    offset = 0
    for kind, name, count in re.findall(
        r"^\s+(__u\d\d|struct \w+) (\w+)(?:\[(\w+)\])?;", body[1], re.MULTILINE
    ):
        found[name] = offset, counts[count or "1"]
        offset += sizes[kind] * found[name][1]
    found[""] = offset, 0
    return found


def test_sizes_are_those_of_the_compiled_structs() -> None:
    assert lib.ABI == layout.ABI
    assert lib.THREADS == layout.THREADS
    assert lib.SLOTS == layout.SLOTS
    assert lib.CALLS == layout.CALLS
    assert lib.THREAD_BYTES == layout.THREAD_BYTES
    assert lib.SLOT_BYTES == layout.SLOT_BYTES
    assert lib.SLOT_BANK_OFFSET == layout.BANK * WORD
    assert lib.SLOT_CALL_OFFSET == layout.CALL * WORD
    assert layout.SLOTS_OFFSET == lib.THREADS * lib.THREAD_BYTES


def test_words_of_a_slot_are_the_members_of_the_struct(header: str) -> None:
    slot = members(header, "kt_slot")

    for name in (
        *("read_bytes", "write_bytes", "net_rx_bytes", "net_tx_bytes", "disk_reads"),
        *("disk_writes", "disk_read_bytes", "disk_write_bytes", "disk_ns", "tcp_retransmits"),
        *("execs", "forks"),
    ):
        assert slot[name][0] == getattr(layout, name.upper()) * WORD, name
    assert slot["bank"][0] == layout.BANK * WORD
    assert slot["call"][0] == layout.CALL * WORD
    assert slot[""][0] == layout.SLOT_BYTES == layout.SLOT_WORDS * WORD


def test_words_of_a_bank_are_the_members_of_the_struct(header: str) -> None:
    bank = members(header, "kt_bank")

    for name in ("run_queue_ns", "ctx_voluntary", "ctx_involuntary", "faults", "major_faults"):
        assert bank[name][0] == getattr(layout, name.upper()) * WORD, name
    assert bank["blocked_ns"] == (layout.BLOCKED_NS * WORD, len(layout.CAUSES))
    assert bank[""][0] == layout.BANK_WORDS * WORD


def test_a_call_and_a_threads_entry_have_the_words_that_python_reads(header: str) -> None:
    call, thread = members(header, "kt_call"), members(header, "kt_thread")

    assert [call[name][0] // WORD for name in ("calls", "errors", "ns")] == [0, 1, 2]
    assert call[""][0] == layout.CALL_WORDS * WORD
    order = [thread[name][0] // WORD for name in ("cell", "poll_ns", "poll_sleep_ns", "off_ns")]
    assert order == [0, 1, 2, 3]
    assert thread[""][0] == layout.THREAD_BYTES


def test_causes_are_the_headers_in_its_order(header: str) -> None:
    causes = re.findall(r"^\tKT_CAUSE_(\w+),$", header, re.MULTILINE)

    assert tuple(cause.lower() for cause in causes) == layout.CAUSES


def test_names_of_calls_are_the_headers_in_its_order() -> None:
    text = (INCLUDE / "kt_calls.h").read_text()

    names = re.findall(r"^\tKT_CALL\((\w+), ", text, re.MULTILINE)

    assert ("other", *names) == layout.CALL_NAMES
    assert len(layout.CALL_NAMES) == layout.CALLS
    assert len(set(layout.CALL_NAMES)) == layout.CALLS
    assert {layout.CALL_NAMES[index] for index in layout.CALL_INDEX.values()} == {"other", *names}


def test_slots_that_nobody_owns_are_the_headers(header: str) -> None:
    numbers = dict(re.findall(r"#define KT_SLOT_(\w+) (\d+)", header))

    assert int(numbers["UNATTRIBUTED"]) == layout.SLOT_UNATTRIBUTED
    assert int(numbers["LATE"]) == layout.SLOT_LATE
    assert int(numbers["FIRST"]) == 2


def test_a_cell_is_built_as_the_header_says(header: str) -> None:
    shifts = {name: int(bits) for name, bits in re.findall(r"KT_CELL_(\w+)_SHIFT (\d+)", header)}
    memory = bytearray(layout.SLOTS_OFFSET + 8 * layout.SLOT_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = engine.Region(
        memory,
        address,
        layout.THREADS,
        8,
        layout.SLOTS_OFFSET,
        layout.SLOT_BYTES,
        lambda: region.bind(1),
    )
    cells: list[int] = []

    def work() -> None:
        before = engine.push(record)
        cells.append(engine.read_cell())
        engine.pop(before)
        region.unbind()

    record = region.open()
    work()  # here it is at home; elsewhere it is in the other bank
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    generation = int.from_bytes(memory[layout.SLOTS_OFFSET + 2 * layout.SLOT_BYTES :][:4], "little")
    assert cells[0] == 2 | generation << shifts["GENERATION"]
    assert cells[1] == cells[0] | 1 << shifts["BANK"]
