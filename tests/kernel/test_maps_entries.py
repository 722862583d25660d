"""Hash tables and arrays of the real kernel: what programs wrote is read, and the other way."""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Any

import pytest

from harness.map_layouts import U32, U64, layout_of, text
from harness.map_object import MapObject, created, map_object, memory_for_maps, read
from harness.nobody import as_nobody
from harness.pace import rounds
from harness.tiers import Require
from kerneltrace_core._native import lib
from kerneltrace_core.errors import (
    MapError,
    MapFullError,
    MapKeyError,
    MapKeyExistsError,
    OptionError,
    UnsupportedError,
)
from kerneltrace_core.maps.kinds import MapFlags, MapType
from kerneltrace_core.maps.walk import MOST_BYTES

pytestmark = [pytest.mark.kernel, pytest.mark.unprivileged]

CPUS = sorted(os.sched_getaffinity(0))
NO_PREALLOC = int(MapFlags.NO_PREALLOC)


@pytest.fixture(autouse=True)
def memory(require: Require) -> None:
    require("memory for maps", probe=memory_for_maps)


def add_on_each_cpu(loaded: MapObject) -> dict[str, Any]:
    """Run add_here(1, 100 + CPU) once on each CPU of ours; return what the maps have."""
    for cpu in CPUS:
        loaded.run("add_here", 1, 100 + cpu, cpu=cpu)
        assert loaded.result(0) == cpu
    slots, threes = loaded.maps["slots_here"], loaded.maps["threes_here"]
    by_key = loaded.maps["threes_by_key"]
    return {
        "slots": slots[1],
        "sum": slots.sum(1),
        "threes": [each.numbers for each in threes[1]],
        "by_key": [(key, [each.numbers for each in values]) for key, values in by_key.items()],
        "untouched": slots[0],
    }


def expected_on_each_cpu() -> dict[str, Any]:
    possible = lib.possible_cpus()
    added = [100 + cpu if cpu in CPUS else 0 for cpu in range(possible)]
    return {
        "slots": added,
        "sum": sum(added),
        "threes": [(by, 0, 2 * by) for by in added],
        "by_key": [(1, [(by, 0, 3 * by) for by in added])],
        "untouched": [0] * possible,
    }


def test_each_cpus_values_are_exact_in_arrays_and_hashes_of_any_value_size() -> None:
    with map_object() as loaded:
        found = add_on_each_cpu(loaded)

    assert found == expected_on_each_cpu()


@pytest.mark.needs("capability:cap_setuid")
def test_each_cpus_values_are_exact_for_nobody_with_two_capabilities(require: Require) -> None:
    require("capability:cap_setuid")
    read("maps")

    def act() -> dict[str, Any]:
        with map_object() as loaded:
            return add_on_each_cpu(loaded)

    assert as_nobody(act) == expected_on_each_cpu()


def test_what_is_set_for_each_cpu_is_what_the_program_goes_on_from() -> None:
    possible = lib.possible_cpus()
    with map_object() as loaded:
        slots, by_key = loaded.maps["slots_here"], loaded.maps["threes_by_key"]
        slots[1] = [1000 * cpu for cpu in range(possible)]
        by_key.fill(1, {"numbers": (7, 8, 9)})

        loaded.run("add_here", 1, 5, cpu=CPUS[-1])

        assert slots[1] == [1000 * cpu + 5 * (cpu == CPUS[-1]) for cpu in range(possible)]
        assert [each.numbers for each in by_key[1]] == [
            (12, 8, 24) if cpu == CPUS[-1] else (7, 8, 9) for cpu in range(possible)
        ]
        assert dict(slots.sums())[1] == sum(slots[1])


def test_structs_go_both_ways() -> None:
    with map_object() as loaded:
        flows = loaded.maps["flows"]
        flows[{"address": 0x0200007F, "port": 443, "protocol": 17, "name": "user"}] = {
            "bytes": 1 << 50,
            "packets": 3,
            "color": "RED",
            "parts": (5, -6, 7),
        }

        loaded.run("exchange_flow")

        assert [loaded.result(index) for index in (1, 2, 3)] == [1 << 50, 3, 1]
        assert loaded.result(4, signed=True) == -6
        theirs = flows[(0x0100007F, 80, 6, "kernel")]
        assert (theirs.bytes, theirs.packets, theirs.parts) == (1 << 40, 7, (-1, 0, 1))
        assert theirs.color.name == "GREEN"
        assert sorted((key.name, key.port) for key in flows) == [("kernel", 80), ("user", 443)]
        again = {flows[key].packets for key in list(flows)}  # a key read is a key to look up
        assert again == {3, 7}


def test_a_hash_behaves_as_a_dict_does() -> None:
    with map_object() as loaded:
        few, model = loaded.maps["few"], dict[int, int]()
        for each in (few, model):
            each[1] = 10
            each.update({2: 20, 3: 30})
            assert each.setdefault(1, 99) == 10
            assert each.setdefault(4, 40) == 40
            assert each.pop(2) == 20
            assert each.pop(2, None) is None
            assert each.get(2) is None
            assert each.get(3) == 30
            assert (1 in each, 2 in each) == (True, False)
            with pytest.raises(KeyError):
                each[2]
            with pytest.raises(KeyError):
                each.pop(2)
            with pytest.raises(KeyError):
                del each[2]
            del each[3]
            assert len(each) == 2
            assert bool(each)

        assert dict(few) == model == {1: 10, 4: 40}
        assert sorted(few.items()) == [(1, 10), (4, 40)]
        assert sorted(few.values()) == [10, 40]
        assert {few.popitem(), few.popitem()} == {(1, 10), (4, 40)}
        assert not few
        with pytest.raises(MapKeyError, match="it is empty"):
            few.popitem()


def test_inserting_and_replacing_are_one_step_each() -> None:
    with map_object() as loaded:
        few = loaded.maps["few"]
        few.insert(1, 10)
        with pytest.raises(MapKeyExistsError, match="insert into map few: it has 1 already"):
            few.insert(1, 11)
        few.replace(1, 12)
        with pytest.raises(MapKeyError, match="replace in map few: it has no 2"):
            few.replace(2, 20)

        assert dict(few) == {1: 12}


def test_a_full_hash_names_its_size_and_the_remedy() -> None:
    with map_object() as loaded:
        few = loaded.maps["few"]
        few.update(dict.fromkeys(range(4), 0))

        with pytest.raises(
            MapFullError, match=r"max_entries is 4 .*map_sizes=\{'few': 8\}"
        ) as told:
            few[4] = 0

        assert told.value.errno == 7
        few[3] = 1  # what is there can still change
        assert len(few) == 4


def test_an_lru_hash_is_never_full() -> None:
    # Free places are kept by CPU: a small one may evict before it is full.
    with created(layout_of(MapType.LRU_HASH, U32, U64, 1024)) as lru:
        for key in range(5000):
            lru[key] = key

        assert 0 < len(lru) <= 1024
        assert all(key == value for key, value in lru.items())
        assert lru[4999] == 4999


def test_an_arrays_elements_are_always_there() -> None:
    with created(layout_of(MapType.ARRAY, U32, U64, 1000)) as array:
        array[999] = 5

        assert len(array) == 1000
        assert sum(array.values()) == 5
        assert list(array) == list(range(1000))
        assert (999 in array, 1000 in array, -1 in array) == (True, False, False)
        with pytest.raises(MapKeyError, match=r"no 1000 \(0 to 999\)"):
            array[1000] = 1
        with pytest.raises(UnsupportedError, match="always there"):
            del array[0]
        with pytest.raises(UnsupportedError, match="always there"):
            array.pop(0)
        with pytest.raises(MapKeyExistsError):
            array.insert(0, 1)
        array.clear()
        assert set(array.values()) == {0}


@pytest.mark.parametrize("batches", [True, False])
def test_clear_and_drain_empty_a_hash(batches: bool) -> None:
    count = rounds(5000, in_guest=700)
    with created(layout_of(MapType.HASH, U32, U64, count)) as table:
        table._walk.batches = batches
        expected = {key: key * 3 for key in range(count)}
        table.update(expected)

        assert dict(table.drain()) == expected
        assert len(table) == 0
        table.update(expected)
        table.clear()
        assert dict(table) == {}


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH])
def test_a_pass_survives_change(kind: MapType, batches: bool) -> None:
    stay, churn = range(300), range(10_000, 10_300)
    with created(layout_of(kind, U32, U64, 2000)) as table:
        store = table.fill if kind is MapType.PERCPU_HASH else table.__setitem__
        table._walk.batches = batches
        for key in stay:
            store(key, key)
        done = threading.Event()

        def change() -> None:
            while not done.is_set():
                for key in churn:
                    store(key, 1)
                for key in churn:
                    table.pop(key, None)

        changer = threading.Thread(target=change)
        changer.start()
        try:
            # A Counter of a mapping would take its values for the counts.
            passes = [Counter(iter(table)) for _ in range(rounds(20, in_guest=3))]
        finally:
            done.set()
            changer.join()

        for seen in passes:
            assert set(seen.values()) == {1}
            assert set(seen) <= {*stay, *churn}
            if batches and table._walk.batches:
                assert set(stay) <= set(seen)


@pytest.mark.parametrize("batches", [True, False])
def test_the_loops_body_may_delete_what_it_is_given(batches: bool) -> None:
    count = rounds(2000, in_guest=500)
    with created(layout_of(MapType.HASH, U32, U64, count)) as table:
        table._walk.batches = batches
        table.update(dict.fromkeys(range(count), 1))

        for key in table:
            del table[key]

        assert len(table) == 0


def test_a_bucket_with_more_than_a_batch_is_read_all_the_same() -> None:
    # As many keys as buckets: some have several, and a batch of one is too small for those.
    count = rounds(4096, in_guest=512)
    with created(layout_of(MapType.HASH, U32, text(MOST_BYTES), count, flags=NO_PREALLOC)) as table:
        table.update(dict.fromkeys(range(count), "x"))

        assert sorted(table) == list(range(count))


def test_sizes_are_compared_with_the_kernels_when_a_map_is_opened() -> None:
    from kerneltrace_core.maps.opening import open_map

    wrong = layout_of(MapType.ARRAY, U64, U32, 4)
    with (
        created(layout_of(MapType.HASH, U32, U64, 4)) as table,
        pytest.raises(
            OptionError,
            match="of type hash, not array; its keys have 4 bytes, not 8; its values have 8",
        ),
    ):
        open_map(table.fileno(), "wrong", wrong)


def test_a_descriptor_that_is_not_of_a_map_is_refused() -> None:
    from kerneltrace_core.maps.opening import open_map

    with map_object() as loaded, pytest.raises(OptionError, match="is not one of a map"):
        # A program's description begins as a map's does.
        open_map(loaded.object.program_fd("landed"), "program")


def test_info_is_the_kernels() -> None:
    with map_object() as loaded:
        info = loaded.maps["shared"].info

        assert (info.type, info.name, info.key_size) == (MapType.ARRAY, "shared", 4)
        assert (info.value_size, info.max_entries) == (12, 1000)
        assert info.flags == MapFlags.MMAPABLE
        assert info.frozen is False
        assert info.memory_bytes is not None
        assert info.memory_bytes >= 16 * 1000
        assert info.id > 0


def test_a_read_only_map_says_so() -> None:
    readonly = layout_of(MapType.HASH, U32, U64, 4, flags=MapFlags.RDONLY)
    with (
        created(readonly) as table,
        pytest.raises(MapError, match="it is open to be read only"),
    ):
        table[1] = 1


def test_a_type_that_older_kernels_lack_is_reported(require: Require) -> None:
    require("task_storage")
    with map_object("task_storage") as loaded, pytest.raises(UnsupportedError, match="list map"):
        len(loaded.maps["notes"])


def test_a_value_with_a_lock_is_never_half_old_and_half_new() -> None:
    def value(number: int) -> dict[str, object]:
        return {"padding": 0, "first": [number] * 16, "second": number}

    with map_object("locked") as loaded:
        table, array = loaded.maps["table"], loaded.maps["array"]
        table.insert(1, value(5))
        table.replace(1, value(6))
        assert [(key, each.second) for key, each in table.items()] == [(1, 6)]
        array[0] = value(0)
        done = threading.Event()

        def change() -> None:
            number = 0
            while not done.is_set():
                number += 1
                array[0] = value(number)

        changer = threading.Thread(target=change)
        changer.start()
        try:
            torn = [
                each for each in (array[0] for _ in range(2000)) if set(each.first) != {each.second}
            ]
        finally:
            done.set()
            changer.join()

        assert torn == []
