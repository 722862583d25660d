"""Queues, tries, maps of maps, stacks, programs and storage of the real kernel."""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from harness.map_layouts import U64, layout_of
from harness.map_object import created, map_object, memory_for_maps, read
from harness.nobody import as_nobody
from harness.tiers import Require
from kerneltrace_core._native import maps
from kerneltrace_core.errors import (
    KernelTraceError,
    MapEmptyError,
    MapError,
    MapFullError,
    MapKeyError,
    OptionError,
    PrivilegeError,
    UnsupportedError,
)
from kerneltrace_core.kernel.support import Support
from kerneltrace_core.maps.histogram import Histogram
from kerneltrace_core.maps.kinds import MapFlags, MapType

pytestmark = [pytest.mark.kernel, pytest.mark.unprivileged]


@pytest.fixture(autouse=True)
def memory(require: Require) -> None:
    require("memory for maps", probe=memory_for_maps)


def can_create(kind: MapType, key_size: int, value_size: int) -> Support:
    """Ask the kernel for a map of a type."""
    try:
        os.close(maps.create(kind, "kt_probe", key_size, value_size, 1))
    except OSError as error:
        return Support.no(f"{kind.name}: {error}")
    return Support.yes()


# ---- queues, stacks, Bloom filters -----------------------------------------------------


def test_a_queue_and_a_stack_go_both_ways_in_their_order() -> None:
    with map_object() as loaded:
        line, pile = loaded.maps["line"], loaded.maps["pile"]
        line.push(5)

        loaded.run("push_and_pop")

        assert loaded.result(0) == 5  # what the program took
        assert (line.peek(), line.pop(), line.pop()) == (70, 70, 71)
        assert (pile.peek(), pile.pop(), pile.pop()) == (81, 81, 80)
        for each in (line, pile):
            with pytest.raises(MapEmptyError, match="it is empty"):
                each.pop()
            with pytest.raises(IndexError):
                each.peek()


def test_a_full_queue_refuses_or_lets_the_oldest_go() -> None:
    with map_object() as loaded:
        line = loaded.maps["line"]
        for value in (1, 2, 3):
            line.push(value)
        with pytest.raises(MapFullError, match="max_entries is 3"):
            line.push(4)
        line.push(4, overwrite=True)

        assert line.drain() == [2, 3, 4]
        assert line.drain() == []


def test_a_bloom_filter_never_denies_what_was_added(require: Require) -> None:
    require("Bloom filters", probe=lambda: can_create(MapType.BLOOM_FILTER, 0, 8))
    with created(layout_of(MapType.BLOOM_FILTER, None, U64, 1000)) as seen:
        for value in range(0, 1000, 10):
            seen.add(value)

        assert all(value in seen for value in range(0, 1000, 10))
        assert sum(value in seen for value in range(10_000, 11_000)) < 500


# ---- tries ------------------------------------------------------------------------------


def test_a_program_and_python_find_the_same_longest_prefix() -> None:
    with map_object() as loaded:
        routes = loaded.maps["routes"]
        routes["10.0.0.0/8"] = 8
        routes[ipaddress.ip_network("10.1.0.0/16")] = 16
        routes[(24, bytes([10, 1, 2, 0]))] = 24
        routes.insert(ipaddress.ip_address("10.1.2.3"), 32)

        for address, expected in (
            ("10.9.9.9", 8), ("10.1.9.9", 16), ("10.1.2.9", 24), ("10.1.2.3", 32),
        ):  # fmt: skip
            packed = ipaddress.ip_address(address).packed
            loaded.run("route", struct.unpack("=I", packed)[0])
            assert loaded.result(0) == routes[address] == expected
        assert "11.0.0.0" not in routes
        assert routes.get("11.0.0.0") is None
        assert {str(key): value for key, value in routes.items()} == {
            "10.0.0.0/8": 8, "10.1.0.0/16": 16, "10.1.2.0/24": 24, "10.1.2.3/32": 32,
        }  # fmt: skip
        # Deleting, popping and setdefault mean the very prefix, though a wider one covers it.
        with pytest.raises(MapKeyError):
            del routes["10.2.0.0/16"]
        assert routes.pop("10.2.0.0/16", None) is None
        assert routes.setdefault("10.2.0.0/16", 99) == 99
        assert routes.setdefault("10.2.0.0/16", 100) == 99
        assert routes.pop("10.1.2.0/24") == 24
        assert routes["10.1.2.9"] == 16
        routes.clear()
        assert len(routes) == 0


def test_a_full_trie_says_so() -> None:
    with map_object() as loaded:
        routes = loaded.maps["routes"]
        routes.update({f"{number}.0.0.0/8": number for number in range(16)})

        with pytest.raises(MapFullError, match=r"max_entries is 16 .*map_sizes=\{'routes': 32\}"):
            routes["16.0.0.0/8"] = 16
        assert sorted(routes.values()) == list(range(16))


# ---- maps of maps -------------------------------------------------------------------------


def test_a_map_of_another_shape_is_no_inner_map() -> None:
    with map_object() as loaded:
        by_key = loaded.maps["by_key"]
        with pytest.raises(OptionError, match="routes is no inner map: it is of type lpm_trie"):
            by_key[5] = loaded.maps["routes"]
        larger = by_key.new("larger", max_entries=3)
        with larger, pytest.raises(MapError, match="larger differs from its inner maps in flags"):
            by_key[5] = larger
        assert by_key.map_ids() == {}


def test_inner_maps_are_read_made_and_stored(require: Require) -> None:
    require("capability:cap_sys_admin")
    with map_object() as loaded:
        by_index, by_key = loaded.maps["by_index"], loaded.maps["by_key"]
        with by_key.new("mine") as mine:
            mine[0] = 41
            by_key[5] = mine
        loaded.run("add_inside", 1, 5)

        with by_index[1] as first, by_key[5] as second:
            assert (first[0], second[0]) == (1, 42)
            assert first.info.id == loaded.maps["first_inner"].info.id == by_index.map_id(1)
        assert set(by_index.map_ids()) == {1}
        assert (1 in by_index, 0 in by_index, len(by_index)) == (True, False, 1)
        with pytest.raises(MapKeyError):
            by_index[0]
        by_index[0] = loaded.maps["first_inner"]
        by_index[1] = by_index[0]
        with pytest.raises(UnsupportedError, match=r"replace in map by_index: .* only overwrites"):
            by_index.replace(1, by_index[0])
        with pytest.raises(UnsupportedError, match=r"insert into map by_index: .* only overwrites"):
            by_index.insert(2, by_index[0])
        assert by_key.insert(6, by_index[0]) is None
        by_key.replace(6, by_index[0])
        by_key.clear()
        assert by_index.map_ids() == dict.fromkeys((0, 1), loaded.maps["first_inner"].info.id)
        del by_index[0]
        assert (list(by_index), list(by_key)) == ([1], [])
        with pytest.raises(OptionError, match="is no descriptor"):
            by_key[5] = "mine"
        with pytest.raises(UnsupportedError, match="read it, then delete it"):
            by_index.pop(1)


def test_inner_maps_are_closed_with_the_outer_one(require: Require) -> None:
    require("capability:cap_sys_admin")
    with map_object() as loaded:
        first = loaded.maps["by_index"][1]
    with pytest.raises(ValueError, match=r"use map by_index\.inner: it is closed"):
        first[0]


def test_nobody_opens_the_inner_maps_that_he_stored_himself(require: Require) -> None:
    require("capability:cap_setuid")
    read("maps")

    def act() -> dict[str, Any]:
        with map_object() as loaded:
            by_index, by_key = loaded.maps["by_index"], loaded.maps["by_key"]
            mine = by_key.new()
            mine[1] = 7
            by_key[5] = mine
            found: dict[str, Any] = {"mine": by_key[5][1]}
            found["id"] = by_index.map_id(1) == loaded.maps["first_inner"].info.id
            try:
                by_index[1]
            except PrivilegeError as error:
                found["others"] = str(error)
            return found

    found = as_nobody(act)

    others = found.pop("others")
    assert found == {"mine": 7, "id": True}
    assert "opening by id needs CAP_SYS_ADMIN" in others


# ---- stacks -------------------------------------------------------------------------------


def test_a_stack_is_what_the_kernel_kept() -> None:
    with map_object() as loaded:
        stacks = loaded.maps["stacks"]
        loaded.run("keep_stack")
        stack_id = loaded.result(0, signed=True)
        assert stack_id >= 0
        raw = maps.lookup(loaded.object.map_fd("stacks"), struct.pack("=i", stack_id), 32 * 8)
        assert raw is not None
        whole = struct.unpack("=32Q", raw)

        stack = stacks[stack_id]

        assert len(stack) >= 3
        assert (*stack, *[0] * (32 - len(stack))) == whole
        assert all(stack)
        assert stacks.depth == 32
        assert dict(stacks.items()) == {stack_id: stack}
        assert stacks.pop(stack_id) == stack
        with pytest.raises(MapKeyError, match=f"it has no {stack_id}"):
            stacks[stack_id]
        with pytest.raises(UnsupportedError, match="kept by programs"):
            stacks[stack_id] = stack


def test_a_failed_stack_is_named() -> None:
    with map_object() as loaded:
        loaded.run("keep_stack")
        failure = loaded.result(1, signed=True)

        with pytest.raises(MapKeyError, match="-22 is no stack id but -EINVAL: the program asked"):
            loaded.maps["stacks"][failure]


# ---- programs, storage, streams ---------------------------------------------------------


def test_a_program_stored_is_jumped_to() -> None:
    with map_object() as loaded:
        jumps, landed = loaded.maps["jumps"], loaded.object.program_fd("landed")
        loaded.run("jump")
        assert loaded.result(0) == 2  # nothing there: it goes on

        jumps[2] = landed
        loaded.run("jump")

        assert loaded.result(0) == 1
        lines = Path(f"/proc/self/fdinfo/{landed}").read_text().splitlines()
        (told,) = (line.split()[1] for line in lines if line.startswith("prog_id:"))
        assert jumps.as_dict() == {2: int(told)}
        del jumps[2]
        assert (len(jumps), 2 in jumps) == (0, False)


def test_a_tasks_storage_is_read_by_pidfd_and_pid(require: Require) -> None:
    require("task_storage")
    with map_object("task_storage") as loaded:
        notes = loaded.maps["notes"]
        with pytest.raises(MapKeyError):
            notes.process(os.getpid())
        loaded.run("note", 77)

        assert notes.process(os.getpid()) == 77
        pidfd = os.pidfd_open(os.getpid())
        try:
            notes[pidfd] = 78
            assert notes[pidfd] == 78
            assert notes.pop(pidfd) == 78
            assert pidfd not in notes
        finally:
            os.close(pidfd)
        with pytest.raises(UnsupportedError, match="does not list who has a value"):
            list(notes)
        with pytest.raises(OptionError, match=r"takes a pidfd \(os.pidfd_open\)"):
            notes["me"]


def test_a_sockets_storage_is_kept_by_python(require: Require) -> None:
    # It needs BTF of its key and value, which only an object has.
    require("task_storage")
    with map_object("socket_storage") as loaded, socket.socket() as one, socket.socket() as other:
        marks = loaded.maps["marks"]
        marks[one] = 5
        marks.insert(other, 6)

        assert (marks[one], marks[other.fileno()]) == (5, 6)
        del marks[one]
        assert one not in marks


def test_streams_say_that_they_are_no_mappings() -> None:
    with map_object() as loaded:
        for name, what in (("ring", "ring buffer"), ("perf", "perf buffer")):
            stream = loaded.maps[name]
            for use in (lambda m: m[0], len, list, lambda m: 0 in m, lambda m: m.items()):
                with pytest.raises(
                    UnsupportedError,
                    match=f"look into map {name}: it is a {what}, .*session.events",
                ):
                    use(stream)
            assert stream.info.type in (MapType.RINGBUF, MapType.PERF_EVENT_ARRAY)


def test_a_histogram_of_a_map_is_bccs_picture() -> None:
    with map_object() as loaded:
        for value, times in ((0, 1), (1, 1), (5, 4), (300, 8)):
            for _ in range(times):
                loaded.run("measure", value)

        histogram = Histogram.log2(loaded.maps["latencies"], unit="usecs")

    assert str(histogram) == (
        "     usecs               : count     distribution\n"
        "         0 -> 1          : 2        |**********                              |\n"
        "         2 -> 3          : 0        |                                        |\n"
        "         4 -> 7          : 4        |********************                    |\n"
        "         8 -> 15         : 0        |                                        |\n"
        "        16 -> 31         : 0        |                                        |\n"
        "        32 -> 63         : 0        |                                        |\n"
        "        64 -> 127        : 0        |                                        |\n"
        "       128 -> 255        : 0        |                                        |\n"
        "       256 -> 511        : 8        |****************************************|"
    )


def test_every_type_of_map_that_the_kernel_has_is_opened_and_described() -> None:
    shapes = {
        MapType.LPM_TRIE: (8, 4, MapFlags.NO_PREALLOC),
        MapType.QUEUE: (0, 4, 0),
        MapType.STACK: (0, 4, 0),
        MapType.BLOOM_FILTER: (0, 4, 0),
        MapType.STACK_TRACE: (4, 80, 0),
        MapType.RINGBUF: (0, 0, 0),
        MapType.USER_RINGBUF: (0, 0, 0),
        MapType.SK_STORAGE: (4, 4, MapFlags.NO_PREALLOC),
    }
    opened = set()
    for kind in MapType:
        key_size, value_size, flags = shapes.get(kind, (4, 4, 0))
        entries = 4096 if "RINGBUF" in kind.name else 4
        try:
            fd = maps.create(kind, "kt_probe", key_size, value_size, entries, int(flags))
        except KernelTraceError:
            continue  # needs BTF, an inner map, another capability, or a newer kernel
        from kerneltrace_core.maps.opening import open_map

        try:
            with open_map(fd, kind.name) as found:
                assert found.info.type == kind
                assert kind.name.lower() in repr(found)
        finally:
            os.close(fd)
        opened.add(kind)

    assert opened >= {
        MapType.HASH, MapType.ARRAY, MapType.PROG_ARRAY, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY,
        MapType.STACK_TRACE, MapType.LRU_HASH, MapType.LRU_PERCPU_HASH, MapType.LPM_TRIE,
        MapType.QUEUE, MapType.STACK, MapType.RINGBUF, MapType.PERF_EVENT_ARRAY,
    }  # fmt: skip
    gc.collect()
