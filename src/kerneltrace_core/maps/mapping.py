"""Maps of keys and values as mutable mappings."""

from __future__ import annotations

import errno
from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast, overload

from kerneltrace_core.btf.layout import MapLayout, StructLayout
from kerneltrace_core.errors import MapKeyError, MapKeyExistsError, OptionError, UnsupportedError
from kerneltrace_core.maps.bpf_map import BpfMap
from kerneltrace_core.maps.calls import MapCalls
from kerneltrace_core.maps.codec import Codec
from kerneltrace_core.maps.concurrent import AsyncItems
from kerneltrace_core.maps.descriptor import Descriptor
from kerneltrace_core.maps.walk import Entry, Walk

__all__ = ["HashMap", "KeyedMap"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

ANY, NEW, EXISTING, LOCK = 0, 1, 2, 4  # BPF_ANY, BPF_NOEXIST, BPF_EXIST, BPF_F_LOCK
MISSING: Any = object()


class KeyedMap(BpfMap, MutableMapping[K, V]):
    """A map with keys, as a mutable mapping that reads and writes the kernel's each time.

    Keys and values are what their C types say, see ``Codec``; bytes of the right number are
    taken everywhere. OptionError, before any system call, for what does not fit; MapKeyError (a
    KeyError) for a key that is not there; MapFullError; PrivilegeError; UnsupportedError.

    A value of more than 8 bytes may be read half old and half new while a program changes it in
    place; not if it has a bpf_spin_lock, which is taken for it here.

    ``len`` counts by walking through all entries, and ``list(map)`` asks for it first, which
    ``as_dict`` and loops do not. Iteration takes entries some hundred at a time and is safe while
    programs, or the loop's body, change the map: it ends, and gives no key twice;
    ``Walk.chunks`` says what it promises. Two maps are equal if they are the same object; compare
    ``as_dict()``.
    """

    def __init__(
        self, descriptor: Descriptor, name: str, layout: MapLayout | None, calls: MapCalls
    ) -> None:
        super().__init__(descriptor, name, layout, calls)
        shape = self._shape
        self._key = self._key_codec()
        self._value = self._value_codec()
        self._walk = Walk(
            calls,
            descriptor,
            shape.type,
            shape.key_size,
            self._value_bytes(),
            shape.max_entries,
            LOCK if _has_lock(layout) else 0,
        )

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    # ---- what a kind of map may say differently ---------------------------------------

    def _key_codec(self) -> Codec:
        key = self.layout.key if self.layout else None
        return Codec(key, self._shape.key_size, lossless=True)

    def _value_codec(self) -> Codec:
        value = self.layout.value if self.layout else None
        return Codec(value, self._shape.value_size)

    def _value_bytes(self) -> int:
        return self._shape.value_size

    def _encode_key(self, key: Any) -> bytes:
        return self._key.encode(key)

    def _decode_key(self, data: bytes) -> K:
        return cast("K", self._key.decode(data))

    def _encode_value(self, value: Any) -> bytes:
        return self._value.encode(value)

    def _decode_value(self, data: bytes) -> V:
        return cast("V", self._value.decode(data))

    # ---- one entry ----------------------------------------------------------------------

    def __getitem__(self, key: K) -> V:
        data = self._lookup(self._as_key(key, "read"))
        if data is None:
            raise self._missing("read", key)
        return self._decode_value(data)

    def __contains__(self, key: object) -> bool:
        return self._lookup(self._as_key(key, "read")) is not None

    def __setitem__(self, key: K, value: V) -> None:
        self._store(key, value, ANY, "update")

    def insert(self, key: K, value: V) -> None:
        """Store only if the key is new, in one step. Raises MapKeyExistsError."""
        self._store(key, value, NEW, "insert into")

    def replace(self, key: K, value: V) -> None:
        """Store only if the key is there, in one step. Raises MapKeyError."""
        self._store(key, value, EXISTING, "replace in")

    def __delitem__(self, key: K) -> None:
        data = self._as_key(key, "delete from")
        with self._explaining("delete from"), self._descriptor as fd:
            found = self._calls.delete(fd, data)
        if not found:
            raise self._missing("delete from", key)

    @overload
    def pop(self, key: K) -> V: ...
    @overload
    def pop(self, key: K, default: V | D) -> V | D: ...
    def pop(self, key: K, default: Any = MISSING) -> Any:
        """Return and delete an entry; in one step with Linux 5.14."""
        data = self._as_key(key, "take from")
        with self._explaining("take from"):
            value = self._take(data)
        if value is not None:
            return self._decode_value(value)
        if default is MISSING:
            raise self._missing("take from", key)
        return default

    def popitem(self) -> tuple[K, V]:
        """Return and delete any entry. Raises MapKeyError if there is none."""
        for chunk in self._chunks():
            for key, _ in chunk:
                with self._explaining("take from"):
                    value = self._take(key)
                if value is not None:
                    return self._decode_key(key), self._decode_value(value)
        raise MapKeyError(f"take from map {self.name}: it is empty")

    @overload
    def setdefault(self: KeyedMap[K, V | None], key: K, default: None = None) -> V | None: ...
    @overload
    def setdefault(self, key: K, default: V) -> V: ...
    def setdefault(self, key: K, default: Any = None) -> Any:
        """Return what is there, else store; nobody else's value is overwritten."""
        data = self._as_key(key, "read")
        while True:
            found = self._lookup(data)
            if found is not None:
                return self._decode_value(found)
            try:
                self.insert(key, default)
            except MapKeyExistsError:
                continue  # came in between
            return default

    # ---- all entries ----------------------------------------------------------------------

    def __iter__(self) -> Iterator[K]:
        for chunk in self._chunks():
            for key, _ in chunk:
                yield self._decode_key(key)

    def __len__(self) -> int:
        return sum(map(len, self._chunks()))

    def __bool__(self) -> bool:
        return any(self._chunks())

    def items(self) -> ItemsView[K, V]:
        """Return the entries as a view, each pass of which reads them anew."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """Return the values as a view, each pass of which reads them anew."""
        return _Values(self)

    def as_dict(self) -> dict[K, V]:
        """Return all entries, in one pass; ``dict(map)`` asks for each key and may miss it."""
        return dict(self.items())

    def aitems(self) -> AsyncItems[K, V]:
        """Return the entries for ``async for``, under asyncio or trio.

        Some hundred are read at a time (some tens of microseconds), and other tasks run in
        between. May be cancelled or left at any point: nothing is held.
        """
        return AsyncItems(self._decoded())

    def clear(self) -> None:
        """Delete all that is there at the moment; what programs add meanwhile may stay."""
        for _ in self._explained(self._walk.take_chunks(), "clear"):
            pass

    def drain(self) -> Iterator[tuple[K, V]]:
        """Yield entries, deleting each; by batches, or with Linux 5.14, in one step.

        What a program stores is in this pass or left in the map; what it adds at that very
        moment through a pointer that it holds may be in neither. A pass that is left early has
        deleted up to some hundred more than it gave.
        """
        for chunk in self._explained(self._walk.take_chunks(), "drain"):
            for key, value in chunk:
                yield self._decode_key(key), self._decode_value(value)

    # ---- inside ---------------------------------------------------------------------------

    def _decoded(self) -> Iterator[list[tuple[K, V]]]:
        for chunk in self._chunks():
            yield [(self._decode_key(key), self._decode_value(value)) for key, value in chunk]

    def _chunks(self) -> Iterator[list[Entry]]:
        return self._explained(self._walk.chunks(), "read")

    def _explained(self, chunks: Iterator[list[Entry]], act: str) -> Iterator[list[Entry]]:
        while True:
            with self._explaining(act):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _as_key(self, key: Any, act: str) -> bytes:
        try:
            return self._encode_key(key)
        except OptionError as error:
            raise OptionError(f"{act} map {self.name}: key: {error}") from None

    def _lookup(self, key: bytes) -> bytes | None:
        try:
            with self._descriptor as fd:
                return self._calls.lookup(fd, key, self._walk.value_bytes, self._walk.flags)
        except OSError as error:
            self._refused("read", error)

    def _take(self, key: bytes) -> bytes | None:
        return self._walk.take(key)

    def _store(self, key: Any, value: Any, flags: int, act: str) -> None:
        data = self._as_key(key, act)
        try:
            encoded = self._encode_value(value)
        except OptionError as error:
            raise OptionError(f"{act} map {self.name}: value: {error}") from None
        self._update(key, data, encoded, flags, act)

    def _update(self, key: K, data: bytes, value: bytes, flags: int, act: str) -> None:
        try:
            with self._descriptor as fd:
                self._calls.update(fd, data, value, flags | self._walk.flags)
        except OSError as error:
            if error.errno == errno.EEXIST and flags == NEW:
                raise MapKeyExistsError(f"{act} map {self.name}: it has {key!r} already") from None
            if error.errno == errno.ENOENT and flags == EXISTING:
                raise self._missing(act, key) from None
            self._refused(act, error)

    def _missing(self, act: str, key: Any) -> MapKeyError:
        return MapKeyError(f"{act} map {self.name}: it has no {key!r}")

    @contextmanager
    def _explaining(self, act: str) -> Iterator[None]:
        try:
            yield
        except UnsupportedError:
            raise  # said already
        except OSError as error:
            self._refused(act, error)


def _has_lock(layout: MapLayout | None) -> bool:
    """Tell whether values have a lock, under which programs change them."""
    value = layout.value if layout else None
    return isinstance(value, StructLayout) and any(
        isinstance(each.type, StructLayout) and each.type.name == "bpf_spin_lock"
        for each in value.members
    )


class HashMap(KeyedMap[K, V]):
    """A hash table; with ``lru_hash`` one that forgets what was least used when it is full."""


class _Items(ItemsView[K, V], Generic[K, V]):
    _mapping: KeyedMap[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        for chunk in self._mapping._decoded():
            yield from chunk


class _Values(ValuesView[V]):
    _mapping: KeyedMap[Any, V]

    def __iter__(self) -> Iterator[V]:
        for chunk in self._mapping._decoded():
            for _, value in chunk:
                yield value
