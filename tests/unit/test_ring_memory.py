"""Memory of batches is used again, and never while anybody can see it."""

from __future__ import annotations

import gc

import pytest

rings = pytest.importorskip("kerneltrace_core._native.rings", reason="_libbpf is not built")


def lend(lender: rings.Lender, byte: bytes, size: int = 64) -> memoryview:
    view: memoryview = lender.view(lender.take(size), size)
    view[:] = byte * size
    return view


def test_what_is_still_seen_is_not_lent_again() -> None:
    lender = rings.Lender()
    kept = [lend(lender, bytes([number])) for number in range(10)]

    parts = [view[8:16].cast("B")[::2] for view in kept]
    del kept
    gc.collect()
    others = [lend(lender, b"\xff") for _ in range(10)]

    assert [bytes(part) for part in parts] == [bytes([number]) * 4 for number in range(10)]
    assert len(others) == 10


def test_memory_whose_last_view_is_gone_is_lent_again() -> None:
    lender = rings.Lender()
    view = lend(lender, b"a")
    del view

    again = lender.view(lender.take(64), 64)

    assert bytes(again) == b"a" * 64, "fresh memory would not have it"


def test_memory_that_is_too_small_is_not_lent() -> None:
    lender = rings.Lender()
    view = lend(lender, b"a", 64)
    del view

    assert len(lend(lender, b"b", 4096)) == 4096


def test_no_more_is_kept_than_was_asked_for_and_nothing_after_the_end() -> None:
    lender = rings.Lender(kept=2)
    views = [lend(lender, b"a") for _ in range(5)]
    views.clear()
    assert len(lender._spare) == 2

    last = lend(lender, b"b")
    lender.close()
    assert bytes(last) == b"b" * 64
    del last
    assert lender._spare == []
    assert lender._lent == {}
