"""Batches as columns: the same numbers as the events have, without a copy where C aligned them."""

from __future__ import annotations

import struct as packing
import sys
from typing import Any

import pytest

from kerneltrace_core.errors import OptionError
from kerneltrace_core.events.classes import event_class
from kerneltrace_core.events.columns import Columns, dtype_of
from kerneltrace_core.events.engine import Selector, pack
from unit.events_engines import frames_of
from unit.events_layouts import (
    BE16,
    BE32,
    BOOL,
    CHAR,
    DOUBLE,
    EVERYTHING,
    HEADER,
    POINT,
    S32,
    STATE,
    U8,
    U16,
    U32,
    U64,
    array,
    struct,
)
from unit.test_events_classes import RECORD, little_endian

SAMPLE = struct(
    "sample",
    48,
    ("header", 0, HEADER),
    ("fd", 24, S32),
    ("port", 28, BE16),
    ("flag", 30, BOOL),
    ("small", 31, U8),
    ("ratio", 32, DOUBLE),
    ("comm", 40, array(CHAR, 8)),
)


def sample(number: int) -> bytes:
    return (
        packing.pack("=HHIQQ", 7, 48, number % 2, 10**9 + number, 0)
        + packing.pack("=i", -number)
        + packing.pack(">H", 8000 + number)
        + packing.pack("=?B", number % 2 == 0, number)
        + packing.pack("=d", number / 4)
        + f"p{number}".encode().ljust(8, b"\0")
    )


def batch(count: int) -> Columns:
    frames = frames_of(*map(sample, range(count)), b"other")
    return Columns(SAMPLE, pack(frames, Selector(48, True, 0, 2, (7,)), 0, count))


def test_a_column_has_one_value_of_each_event() -> None:
    columns = batch(5)

    assert len(columns) == 5
    assert list(columns["fd"]) == [0, -1, -2, -3, -4]
    assert list(columns["port"]) == [8000, 8001, 8002, 8003, 8004]
    assert list(columns["flag"]) == [True, False, True, False, True]
    assert list(columns["small"]) == [0, 1, 2, 3, 4]
    assert list(columns["ratio"]) == [0, 0.25, 0.5, 0.75, 1]
    assert columns["comm"] == ["p0", "p1", "p2", "p3", "p4"]
    assert list(columns["header.time_ns"]) == [10**9 + number for number in range(5)]
    assert sum(columns["header.cpu"]) == 2


def test_an_aligned_column_is_a_view_and_nothing_can_be_written() -> None:
    columns = batch(3)
    fd: Any = columns["fd"]
    port: Any = columns["port"]

    assert isinstance(fd, memoryview)
    assert (fd.obj is columns.data.obj, fd.strides, fd.format, fd.readonly) == (
        True,
        (48,),
        "i",
        True,
    )
    assert (port.obj is columns.data.obj, port.format, port.readonly) == (False, "H", True)
    assert columns["fd"] is fd
    with pytest.raises(TypeError):
        fd[0] = 1
    with pytest.raises(TypeError):
        columns.data[0] = 1  # type: ignore[index]


def test_columns_are_known_by_their_names() -> None:
    columns = batch(2)

    assert list(columns) == list(columns.keys())
    assert list(columns)[-7:] == ["header.request", "fd", "port", "flag", "small", "ratio", "comm"]
    assert "fd" in columns
    assert "header" not in columns
    assert {name: len(values) for name, values in dict(columns).items()}["ratio"] == 2
    assert repr(batch(1)).startswith("<1 x sample: header.type, ")
    for missing in ("nope", "header", 0):
        with pytest.raises(KeyError):
            columns[missing]  # type: ignore[index]


def test_no_events_are_empty_columns() -> None:
    columns = batch(0)

    assert len(columns) == 0
    assert {name: list(columns[name]) for name in columns} == {name: [] for name in columns}


@pytest.mark.parametrize(("size", "data"), [(48, b"x"), (48, bytes(49)), (0, b"")])
def test_bytes_that_are_no_records_are_refused(size: int, data: bytes) -> None:
    layout = SAMPLE if size else struct("empty", 0)

    with pytest.raises(OptionError, match="make columns of"):
        Columns(layout, data)


def test_a_packed_struct_is_read_where_its_fields_are() -> None:
    layout = struct("packed", 7, ("a", 0, U8), ("b", 1, U32), ("c", 5, BE16))
    columns = Columns(
        layout, packing.pack("=BI", 1, 2) + b"\0\3" + packing.pack("=BI", 4, 5) + b"\0\6"
    )

    assert [list(columns[name]) for name in "abc"] == [[1, 4], [2, 5], [3, 6]]


@little_endian
def test_columns_and_events_tell_the_same() -> None:
    columns = Columns(EVERYTHING, RECORD * 3)
    event: Any = event_class(EVERYTHING).from_bytes(RECORD)

    for name in columns:
        value = event
        for part in name.split("."):
            value = getattr(value, part)
        assert list(columns[name]) == [value] * 3, name


def test_a_dtype_says_where_numpy_finds_the_fields() -> None:
    layout = struct(
        "s",
        64,
        ("point", 0, POINT),
        ("address", 8, BE32),
        ("state", 12, STATE),
        ("low", 16, U32, 0, 3),
        ("comm", 20, array(CHAR, 16)),
        ("matrix", 36, array(U16, 2, 3)),
        ("flag", 48, BOOL),
        ("class", 56, U64),
    )

    assert dtype_of(layout) == {
        "names": ["point", "address", "state", "comm", "matrix", "flag", "class_"],
        "formats": [
            {"names": ["x", "y"], "formats": ["=i4", "=i4"], "offsets": [0, 4], "itemsize": 8},
            ">u4",
            "=u4",
            "S16",
            (("=u2", (3,)), (2,)),
            "?",
            "=u8",
        ],
        "offsets": [0, 8, 12, 20, 36, 48, 56],
        "itemsize": 64,
    }


def test_numpy_reads_the_same_bytes() -> None:
    import numpy

    columns = batch(4)

    found = columns.numpy()

    assert found["fd"].tolist() == [0, -1, -2, -3]
    assert found["port"].tolist() == [8000, 8001, 8002, 8003]
    assert found["header"]["cpu"].tolist() == [0, 1, 0, 1]
    assert found["comm"].tolist() == [b"p0", b"p1", b"p2", b"p3"]
    assert numpy.shares_memory(found, numpy.asarray(columns.data))


def test_without_numpy_asking_for_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)

    with pytest.raises(ImportError):
        batch(1).numpy()
