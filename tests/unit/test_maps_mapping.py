"""Maps over a fake kernel: dictionaries that act as the kernel does."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.map_layouts import U32, U64, layout_of, text
from kerneltrace_core._native.map_records import Batch
from kerneltrace_core.btf.layout import ArrayLayout, FieldLayout, MapLayout, StructLayout
from kerneltrace_core.errors import (
    ClosedError,
    MapEmptyError,
    MapError,
    MapFullError,
    MapKeyError,
    MapKeyExistsError,
    OptionError,
    PrivilegeError,
    UnsupportedError,
)
from kerneltrace_core.maps.kinds import MapFlags, MapType
from kerneltrace_core.maps.maps import Maps
from kerneltrace_core.maps.opening import open_map, open_pinned
from kerneltrace_core.testing.maps import FakeMapCalls

THREE = StructLayout("three", 12, (FieldLayout("numbers", 0, ArrayLayout(U32, 3)),))
HASH = layout_of(MapType.HASH, U32, U64, 4)
PREFIX = StructLayout(
    "prefix", 8, (FieldLayout("bits", 0, U32), FieldLayout("address", 4, ArrayLayout(U32, 1)))
)


def faked(layout: MapLayout, calls: FakeMapCalls | None = None) -> Any:
    """Open a map of a fake kernel."""
    fake = calls or FakeMapCalls()
    fd = fake.create_like(layout)
    made = open_map(fd, layout.name, layout, calls=fake)
    fake.close(fd)
    return made


# ---- nothing wrong reaches the kernel ----------------------------------------------------


ENTRY_CALLS = {"lookup", "update", "delete", "take", "next_key", "read_batch", "contains"}


@pytest.mark.parametrize(
    ("layout", "use"),
    [
        (HASH, lambda m: m[-1]),
        (HASH, lambda m: m[b"123"]),
        (HASH, lambda m: m["x"]),
        (HASH, lambda m: m.get(1 << 32)),
        (HASH, lambda m: "x" in m),
        (HASH, lambda m: m.__setitem__(1, -1)),
        (HASH, lambda m: m.__setitem__(1, b"1234567")),
        (HASH, lambda m: m.__setitem__(1, b"123456789")),
        (HASH, lambda m: m.insert(1, 1 << 64)),
        (HASH, lambda m: m.replace(None, 1)),
        (HASH, lambda m: m.pop(1.5)),
        (HASH, lambda m: m.__delitem__((1,))),
        (layout_of(MapType.ARRAY, U32, U64, 4), lambda m: m.__setitem__("0", 1)),
        (layout_of(MapType.ARRAY, U32, U64, 4), lambda m: m[b"1"]),
        (layout_of(MapType.PERCPU_ARRAY, U32, U64, 4), lambda m: m.__setitem__(0, [1, 2, 3])),
        (layout_of(MapType.PERCPU_ARRAY, U32, U64, 4), lambda m: m.__setitem__(0, [1] * 5)),
        (layout_of(MapType.PERCPU_ARRAY, U32, U64, 4), lambda m: m.__setitem__(0, 1)),
        (layout_of(MapType.PERCPU_ARRAY, U32, U64, 4), lambda m: m.__setitem__(0, bytes(8))),
        (layout_of(MapType.PERCPU_ARRAY, U32, U64, 4), lambda m: m.fill(0, [1] * 4)),
        (layout_of(MapType.PERCPU_HASH, U32, THREE, 4), lambda m: m.fill(0, bytes(16))),
        (layout_of(MapType.QUEUE, None, U64, 4), lambda m: m.push(b"123")),
        (layout_of(MapType.BLOOM_FILTER, None, U64, 4), lambda m: m.add("x")),
        (layout_of(MapType.BLOOM_FILTER, None, U64, 4), lambda m: -1 in m),
        (layout_of(MapType.LPM_TRIE, PREFIX, U32, 4), lambda m: m["::1"]),
        (layout_of(MapType.LPM_TRIE, PREFIX, U32, 4), lambda m: m["ten"]),
        (layout_of(MapType.LPM_TRIE, PREFIX, U32, 4), lambda m: m[(33, bytes(4))]),
        (layout_of(MapType.LPM_TRIE, PREFIX, U32, 4), lambda m: m[(8, bytes(3))]),
        (layout_of(MapType.LPM_TRIE, PREFIX, U32, 4), lambda m: m[5]),
        (layout_of(MapType.STACK_TRACE, U32, None, 4), lambda m: m["x"]),
        (layout_of(MapType.HASH_OF_MAPS, U32, None, 4), lambda m: m.__setitem__(1, "x")),
        (layout_of(MapType.HASH_OF_MAPS, U32, None, 4), lambda m: m.__setitem__(1, -1)),
        (layout_of(MapType.PROG_ARRAY, U32, None, 4), lambda m: m.__setitem__(1, None)),
        (layout_of(MapType.TASK_STORAGE, U32, U64, 4), lambda m: m["self"]),
    ],
)
def test_what_does_not_fit_never_becomes_a_system_call(
    layout: MapLayout, use: Callable[[Any], Any]
) -> None:
    fake = FakeMapCalls()
    opened = faked(layout, fake)
    with pytest.raises(OptionError, match="made"):
        use(opened)
    assert ENTRY_CALLS.isdisjoint(fake.seen)


def test_an_index_that_is_not_there_never_becomes_a_system_call() -> None:
    fake = FakeMapCalls()
    array = faked(layout_of(MapType.ARRAY, U32, U64, 4), fake)
    for use in (lambda: array[4], lambda: array[-1], lambda: array.__setitem__(4, 1)):
        with pytest.raises(MapKeyError, match=r"\(0 to 3\)"):
            use()
    assert 4 not in array
    assert array.get(9) is None
    assert ENTRY_CALLS.isdisjoint(fake.seen)


# ---- against a dict ----------------------------------------------------------------------

keys = st.integers(0, 9)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["set", "insert", "replace", "setdefault"]), keys, keys),
        st.tuples(st.sampled_from(["get", "del", "pop", "in"]), keys, st.just(0)),
        st.tuples(st.sampled_from(["popitem", "clear", "len", "items", "drain"]), keys, keys),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(steps, st.sampled_from([(), ("read_batch",), ("read_batch", "take")]))
def test_a_hash_is_a_dict_with_a_bottom(
    todo: list[tuple[str, int, int]], without: tuple[str, ...]
) -> None:
    table = faked(layout_of(MapType.HASH, U32, U64, 5), FakeMapCalls(without=without))
    model: dict[int, int] = {}
    for act, key, value in todo:
        full = len(model) == 5 and key not in model
        if act in ("set", "insert", "setdefault") and full:
            with pytest.raises(MapFullError):
                {"set": table.__setitem__}.get(act, getattr(table, act, None))(key, value)
        elif act == "set":
            table[key] = model[key] = value
        elif act == "insert" and key in model:
            with pytest.raises(MapKeyExistsError):
                table.insert(key, value)
        elif act == "insert":
            table.insert(key, value)
            model[key] = value
        elif act == "replace" and key not in model:
            with pytest.raises(MapKeyError):
                table.replace(key, value)
        elif act == "replace":
            table.replace(key, value)
            model[key] = value
        elif act == "setdefault":
            assert table.setdefault(key, value) == model.setdefault(key, value)
        elif act == "get":
            assert table.get(key) == model.get(key)
        elif act == "in":
            assert (key in table) == (key in model)
        elif act == "pop":
            assert table.pop(key, None) == model.pop(key, None)
        elif act == "del" and key in model:
            del table[key]
            del model[key]
        elif act == "del":
            with pytest.raises(KeyError):
                del table[key]
        elif act == "popitem" and model:
            popped, found = table.popitem()
            assert model.pop(popped) == found
        elif act == "clear":
            table.clear()
            model.clear()
        elif act == "drain":
            assert dict(table.drain()) == model
            model.clear()
        elif act == "len":
            assert (len(table), bool(table)) == (len(model), bool(model))
        assert table.as_dict() == model


class Racing(FakeMapCalls):
    """A kernel in which a program stores the key that was just found missing."""

    def lookup(self, fd: int, key: bytes | None, size: int, flags: int = 0) -> bytes | None:
        found = super().lookup(fd, key, size, flags)
        if found is None and key is not None:
            self.update(fd, key, b"\7" * size)
        return found


def test_setdefault_overwrites_nothing_that_came_in_between() -> None:
    table = faked(HASH, Racing())
    assert table.setdefault(1, 5) == table[1] == int.from_bytes(b"\7" * 8, "little")


# ---- walking -----------------------------------------------------------------------------


@pytest.mark.parametrize("without", [(), ("read_batch",)])
def test_every_entry_of_a_large_map_comes_once(without: tuple[str, ...]) -> None:
    fake = FakeMapCalls(without=without)
    table = faked(layout_of(MapType.HASH, U32, U64, 2000), fake)
    table.update({key: key for key in range(1500)})

    assert sorted(iter(table)) == list(range(1500))
    assert len(table) == 1500
    assert fake.seen.count("next_key") == (3002 if without else 0)


def test_a_kernel_without_batches_is_asked_once() -> None:
    fake = FakeMapCalls(without=("read_batch",))
    table = faked(HASH, fake)
    for _ in range(3):
        list(table)
    assert fake.seen.count("read_batch") == 1


class Endless(FakeMapCalls):
    """A kernel in which every key is gone before the next one is asked for."""

    def next_key(self, fd: int, key: bytes | None, size: int) -> bytes | None:
        super().next_key(fd, None, size)
        return b"\1\0\0\0"


def test_a_pass_through_keys_that_vanish_ends_and_repeats_none() -> None:
    table = faked(layout_of(MapType.HASH, U32, U64, 4), Endless(without=("read_batch",)))
    table[b"\1\0\0\0"] = 1
    assert len(list(table)) == 1


class Crowded(FakeMapCalls):
    """A kernel with more entries in one bucket than a batch asks for at first."""

    def read_batch(
        self, fd: int, start: bytes | None, count: int, *sizes: int, **how: Any
    ) -> Batch:
        if count < 400:
            self.seen.append("too small")
            raise MapError("fake kernel", errno=errno.ENOSPC)
        return super().read_batch(fd, start, count, *sizes, **how)


def test_a_batch_grows_until_a_bucket_fits() -> None:
    fake = Crowded()
    table = faked(layout_of(MapType.HASH, U32, U64, 1000), fake)
    table.update(dict.fromkeys(range(300), 1))
    assert len(table) == 300
    assert fake.seen.count("too small") == 1


def test_a_bucket_that_never_fits_is_an_error_and_no_endless_loop() -> None:
    class Bottomless(FakeMapCalls):
        def read_batch(self, *_: Any, **__: Any) -> Batch:
            raise MapError("fake kernel", errno=errno.ENOSPC)

    with pytest.raises(MapError, match="read map made: No space left"):
        list(faked(HASH, Bottomless()))


def test_async_iteration_goes_under_asyncio_and_trio() -> None:
    import trio

    table = faked(layout_of(MapType.HASH, U32, U64, 1000))
    table.update({key: key for key in range(1000)})

    async def collect() -> dict[int, int]:
        return {key: value async for key, value in table.aitems()}

    expected = {key: key for key in range(1000)}
    assert asyncio.run(collect()) == expected
    assert trio.run(collect) == expected


# ---- per CPU -----------------------------------------------------------------------------


def test_values_of_each_cpu_are_padded_to_eight_bytes() -> None:
    fake = FakeMapCalls(cpus=3)
    table = faked(layout_of(MapType.PERCPU_HASH, U32, THREE, 4), fake)
    table[7] = [(((cpu, 2, 3)),) for cpu in range(3)]

    assert [each.numbers for each in table[7]] == [(0, 2, 3), (1, 2, 3), (2, 2, 3)]
    stored = fake.lookup(table.fileno(), (7).to_bytes(4, "little"), 1 << 10)
    assert stored is not None
    assert len(stored) == 3 * 16
    with pytest.raises(OptionError, match="struct three is no number"):
        table.sum(7)


def test_sums_and_fills() -> None:
    array = faked(layout_of(MapType.PERCPU_ARRAY, U32, U64, 3), FakeMapCalls(cpus=4))
    array[0] = [1, 2, 3, 4]
    array.fill(1, 5)

    assert (array.cpus, array.sum(0), array.sum(1)) == (4, 10, 20)
    assert dict(array.sums()) == {0: 10, 1: 20, 2: 0}
    assert array.as_dict() == {0: [1, 2, 3, 4], 1: [5] * 4, 2: [0] * 4}
    array.clear()
    assert array.sum(0) == 0
    with pytest.raises(OptionError, match="value: CPU 2: -1 does not fit"):
        array[0] = [0, 0, -1, 0]


# ---- life --------------------------------------------------------------------------------


class Slow(FakeMapCalls):
    """A kernel in which a lookup takes until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def lookup(self, fd: int, key: bytes | None, size: int, flags: int = 0) -> bytes | None:
        self.begun.set()
        assert self.go_on.wait(10)
        assert fd in self.descriptors  # still this map's
        return super().lookup(fd, key, size, flags)


def test_a_descriptor_in_use_is_closed_when_the_use_ends() -> None:
    fake = Slow()
    table = faked(HASH, fake)
    table[1] = 5
    number = table.fileno()
    found: list[int] = []
    user = threading.Thread(target=lambda: found.append(table[1]))
    user.start()
    assert fake.begun.wait(10)

    table.close()  # does not wait

    assert number in fake.descriptors
    with pytest.raises(ClosedError):
        table[1] = 6
    fake.go_on.set()
    user.join()
    assert found == [5]
    assert number not in fake.descriptors


def test_a_map_that_nobody_holds_gives_its_descriptor_back() -> None:
    fake = FakeMapCalls()
    table = faked(HASH, fake)
    assert len(fake.descriptors) == 1
    del table
    assert fake.descriptors == {}


def test_maps_are_opened_when_asked_for_and_close_together() -> None:
    fake = FakeMapCalls()
    layouts = {"one": HASH, "two": layout_of(MapType.QUEUE, None, U64, 2)}
    fds = {name: fake.create_like(layout) for name, layout in layouts.items()}
    mine = Maps(fds.__getitem__, layouts, calls=fake)
    assert (list(mine), len(mine), "one" in mine, "six" in mine) == (["one", "two"], 2, True, False)
    assert len(fake.descriptors) == 2
    one = mine["one"]
    assert mine["one"] is one
    assert len(fake.descriptors) == 3
    with pytest.raises(KeyError, match=r"no such map \(did you mean one\?\)"):
        mine["onne"]
    with pytest.raises(MapKeyError, match=r"no such map \(it has one, two\)"):
        mine["zzz"]
    assert mine.get("zzz") is None
    with pytest.raises(MapKeyError, match=r"no such map \(global variables are in session.var"):
        mine["mine.bss"]

    mine.close()
    mine.close()

    assert len(fake.descriptors) == 2
    for use in (lambda: mine["one"], lambda: mine["two"], lambda: one[1]):
        with pytest.raises(ClosedError):
            use()


# ---- what the kernel refuses -------------------------------------------------------------


@contextmanager
def refusing(code: int) -> Iterator[Any]:
    fake = FakeMapCalls()
    table = faked(HASH, fake)

    def refuse(*_: Any, **__: Any) -> Any:
        raise MapError("fake kernel", errno=code)

    for call in ENTRY_CALLS:
        setattr(fake, call, refuse)
    yield table


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        (errno.ENOMEM, MapError, r"Cannot allocate memory \(ENOMEM\)"),
        (errno.EBUSY, MapError, "EBUSY"),
        (errno.EPERM, PrivilegeError, "map made: "),
        (errno.EOPNOTSUPP, UnsupportedError, "cannot do so with a map of type hash"),
    ],
)
def test_refusals_have_words_and_their_errno(code: int, error: type[OSError], told: str) -> None:
    with refusing(code) as table:
        for use in (
            lambda: table[1],
            lambda: table.__setitem__(1, 1),
            lambda: table.__delitem__(1),
            lambda: table.update({1: 1}),
        ):
            with pytest.raises(error, match=told) as caught:
                use()
            assert caught.value.errno == code


def test_errors_are_the_builtins_that_one_expects() -> None:
    table, line = faked(HASH), faked(layout_of(MapType.QUEUE, None, U64, 1))
    with pytest.raises(KeyError) as missing:
        table[5]
    assert str(missing.value) == "read map made: it has no 5"
    with pytest.raises(IndexError):
        line.pop()
    line.push(1)
    with pytest.raises(OSError, match="max_entries is 1") as full:
        line.push(2)
    assert full.value.errno == errno.E2BIG
    assert isinstance(full.value, MapFullError)
    assert line.drain() == [1]
    with pytest.raises(MapEmptyError):
        line.peek()


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (MapType.HASH, r"2}\), or let what is least used go: type lru_hash\)$"),
        (MapType.PERCPU_HASH, r"2}\), or let what is least used go: type lru_percpu_hash\)$"),
        (MapType.LPM_TRIE, r"2}\)\)$"),
        (MapType.QUEUE, r"2}\), or let the oldest go: push\(value, overwrite=True\)\)$"),
        (MapType.STACK, r"2}\), or let the oldest go: push\(value, overwrite=True\)\)$"),
    ],
)
def test_a_full_map_names_what_helps_with_its_type(kind: MapType, remedy: str) -> None:
    keyless = kind in (MapType.QUEUE, MapType.STACK)
    trie = kind is MapType.LPM_TRIE
    full = faked(layout_of(kind, None if keyless else PREFIX if trie else U32, U64, 1))
    value = [1] * 4 if kind is MapType.PERCPU_HASH else 1

    def store(number: int) -> None:
        if keyless:
            full.push(value)
        else:
            full[f"{number}.0.0.0/8" if trie else number] = value

    store(1)
    with pytest.raises(MapFullError, match="it is full, max_entries is 1 .*" + remedy):
        store(2)


def test_inner_maps_over_a_kernel_that_opens_none_by_id() -> None:
    fake = FakeMapCalls(without=("open_id",))
    layout = layout_of(MapType.HASH_OF_MAPS, U32, None, 4, inner=HASH)
    outer = faked(layout, fake)
    inner = outer.new("mine")
    inner[1] = 2
    outer[5] = inner

    assert outer[5][1] == 2
    assert outer.map_ids() == {5: inner.info.id}
    inner.close()
    with pytest.raises(PrivilegeError, match="needs CAP_SYS_ADMIN"):
        outer[5]


def test_a_map_of_maps_gives_none_away_that_could_not_be_opened_then() -> None:
    outer = faked(layout_of(MapType.HASH_OF_MAPS, U32, None, 4, inner=HASH))
    outer[1] = outer.new()
    for use in (lambda: outer.pop(1), lambda: outer.popitem(), lambda: outer.drain()):
        with pytest.raises(UnsupportedError, match="read"):
            use()
    assert list(outer) == [1]
    outer.clear()
    assert list(outer) == []


def test_a_map_of_maps_of_unknown_shape_makes_none() -> None:
    outer = faked(layout_of(MapType.HASH_OF_MAPS, U32, None, 4))
    with pytest.raises(OptionError, match="does not say of which shape"):
        outer.new()


def test_a_map_that_is_no_inner_map_never_becomes_a_system_call() -> None:
    fake = FakeMapCalls()
    outer = faked(layout_of(MapType.HASH_OF_MAPS, U32, None, 4, inner=HASH), fake)
    other = faked(layout_of(MapType.ARRAY, U32, U32, 4), fake)
    fake.seen.clear()

    with pytest.raises(OptionError) as caught:
        outer[1] = other
    assert str(caught.value) == (
        "update map made: value: map made is no inner map: it is of type array, not hash; "
        "its values have 4 bytes, not 8 (new() makes one)"
    )
    assert not ENTRY_CALLS & set(fake.seen)


def test_an_inner_map_that_the_kernel_does_not_take_is_named() -> None:
    class Picky(FakeMapCalls):
        def update(self, fd: int, key: bytes | None, value: bytes, flags: int = 0) -> None:
            raise MapError("fake kernel", errno=errno.EINVAL)

    outer = faked(layout_of(MapType.HASH_OF_MAPS, U32, None, 4, inner=HASH), Picky())
    with pytest.raises(MapError, match="map one differs from its inner maps in") as caught:
        outer[1] = outer.new("one")
    assert caught.value.errno == errno.EINVAL


def test_memory_over_a_fake_kernel() -> None:
    array = faked(layout_of(MapType.ARRAY, U32, THREE, 5, flags=MapFlags.MMAPABLE))
    array[4] = {"numbers": (1, 2, 3)}
    with array.mapped(writable=True) as memory:
        assert (memory[4].numbers, memory[0].numbers) == ((1, 2, 3), (0, 0, 0))
        memory[1] = {"numbers": (7, 8, 9)}
        assert memory[1].numbers == (7, 8, 9)
        assert [each.numbers[0] for each in memory] == [0, 7, 0, 0, 1]
        assert len(list(memory)) == len(memory) == 5
        with pytest.raises(OptionError, match="write memory of map made: value: "):
            memory[1] = 5
        with pytest.raises(MapKeyError, match=r"no 5 \(0 to 4\)"):
            memory[5]
    assert memory.closed
    memory.close()
    array.freeze()
    with pytest.raises(MapError, match="frozen already"):
        array[0] = {"numbers": (1, 1, 1)}
    with pytest.raises(MapError, match="frozen already"):
        array.mapped(writable=True)


def test_queues_and_stacks_over_a_fake_kernel() -> None:
    for kind, expected in ((MapType.QUEUE, [2, 3, 4]), (MapType.STACK, [4, 3, 2])):
        line = faked(layout_of(kind, None, U64, 3))
        for value in (1, 2, 3):
            line.push(value)
        with pytest.raises(MapFullError):
            line.push(4)
        line.push(4, overwrite=True)
        assert line.drain() == expected
        with pytest.raises(TypeError):
            len(line)


def test_tries_over_a_fake_kernel() -> None:
    routes = faked(layout_of(MapType.LPM_TRIE, PREFIX, U32, 9))
    routes["10.0.0.0/8"] = 8
    routes["10.1.0.0/16"] = 16
    assert [routes.get(key) for key in ("10.9.9.9", "10.1.9.9", "11.0.0.0")] == [8, 16, None]
    assert sorted(map(str, routes)) == ["10.0.0.0/8", "10.1.0.0/16"]
    assert routes.pop("10.1.2.0/24", None) is None
    assert routes.setdefault((24, bytes([10, 1, 2, 0])), 24) == routes["10.1.2.3"] == 24
    routes[{"bits": 32, "address": [0x0403010A]}] = 32  # as the program fills its struct
    assert routes["10.1.3.4"] == 32
    with pytest.raises(OptionError, match="key: field address of struct prefix is not given"):
        routes[{"bits": 32}]


def test_a_trie_of_a_kernel_that_overwrites_regardless_refuses_to_insert() -> None:
    class Overwriting(FakeMapCalls):
        def update(self, fd: int, key: bytes | None, value: bytes, flags: int = 0) -> None:
            super().update(fd, key, value, 0)

    old = Overwriting()
    routes = faked(layout_of(MapType.LPM_TRIE, PREFIX, U32, 9), old)
    routes["10.0.0.0/8"] = 8
    for use in (routes.insert, routes.replace, routes.setdefault):
        with pytest.raises(UnsupportedError, match="this kernel overwrites in tries"):
            use("10.0.0.0/8", 9)
    assert routes.as_dict() == {ip_network("10.0.0.0/8"): 8}
    assert len(old.descriptors) == 1


def test_a_trie_is_inserted_into_where_no_other_can_be_made_to_try_it() -> None:
    barred = FakeMapCalls()
    routes = faked(layout_of(MapType.LPM_TRIE, PREFIX, U32, 9), barred)
    barred.without = ("create",)
    routes.insert("10.0.0.0/8", 8)
    with pytest.raises(MapKeyExistsError):
        routes.insert("10.0.0.0/8", 9)
    assert routes["10.0.0.1"] == 8


def test_pinned_maps_are_found_again_by_shape() -> None:
    fake = FakeMapCalls()
    table = faked(HASH, fake)
    table[1] = 2
    table.pin("/pins/table")
    with open_pinned("/pins/table", HASH, calls=fake) as again:
        assert again.as_dict() == {1: 2}
    with pytest.raises(OptionError, match="its values have 8 bytes, not 4"):
        open_pinned("/pins/table", layout_of(MapType.HASH, U32, U32, 4), calls=fake)
    assert list(fake.descriptors.values()) == [fake.descriptors[table.fileno()]]


def test_values_with_a_lock_are_read_and_written_under_it() -> None:
    lock = StructLayout("bpf_spin_lock", 4, (FieldLayout("val", 0, U32),))
    pair = StructLayout("pair", 8, (FieldLayout("lock", 0, lock), FieldLayout("count", 4, U32)))
    uses: list[Callable[[Any], Any]] = [
        lambda m: m.__setitem__(1, {"count": 1}), lambda m: m.get(1), lambda m: list(m.items()),
    ]  # fmt: skip
    for use in uses:
        locked, plain = FakeMapCalls(), FakeMapCalls()
        use(faked(layout_of(MapType.HASH, U32, pair, 4), locked))
        use(faked(layout_of(MapType.HASH, U32, THREE, 4), plain)) if use is not uses[0] else None
        assert (locked.locked > 0, plain.locked) == (True, 0)


def test_two_maps_are_equal_if_they_are_one() -> None:
    fake = FakeMapCalls()
    one, other = faked(HASH, fake), faked(HASH, fake)
    assert one == one
    assert one != other
    assert len({one, other, one}) == 2


def test_text_keys_are_str_and_structs_are_events() -> None:
    table = faked(layout_of(MapType.HASH, text(16), THREE, 4))
    table["worker"] = {"numbers": [1, 2, 3]}
    table["other"] = (b"\1\0\0\0\2\0\0\0\3\0\0\0",)
    assert {key: value.numbers for key, value in table.items()} == {
        "worker": (1, 2, 3), "other": (1, 2, 3),
    }  # fmt: skip
    assert MapFlags(0) == table.info.flags
