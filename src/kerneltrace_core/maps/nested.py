"""Maps of maps, and arrays of programs: values are descriptors."""

from __future__ import annotations

import errno
import operator
import struct
import weakref
from typing import Any, NoReturn, TypeVar

from kerneltrace_core.btf.layout import MapLayout
from kerneltrace_core.errors import MapError, MapKeyError, OptionError, PrivilegeError
from kerneltrace_core.maps.arrays import IndexedMap
from kerneltrace_core.maps.bpf_map import BpfMap
from kerneltrace_core.maps.calls import MapCalls
from kerneltrace_core.maps.codec import Codec
from kerneltrace_core.maps.descriptor import Descriptor
from kerneltrace_core.maps.mapping import KeyedMap
from kerneltrace_core.maps.shape import differences

__all__ = ["ArrayOfMaps", "DescriptorMap", "HashOfMaps", "MapOfMaps"]

K = TypeVar("K")
V = TypeVar("V")

U32 = struct.Struct("=I")


def descriptor_of(value: Any) -> bytes:
    """Return the bytes of a descriptor: an int, or what has a ``fileno()``."""
    fileno = getattr(value, "fileno", None)
    try:
        number = operator.index(fileno() if callable(fileno) else value)
    except TypeError:
        raise OptionError(f"{value!r} is no descriptor, nor has it one") from None
    if not 0 <= number < 1 << 31:
        raise OptionError(f"{number} is no descriptor")
    return U32.pack(number)


class OverwritingMap(IndexedMap[V]):
    """An array of descriptors: the kernel only overwrites, and may have nothing at an index."""

    def insert(self, key: int, value: V) -> None:  # noqa: ARG002
        """Refuse: the kernel cannot."""
        self._overwrites("insert into")

    def replace(self, key: int, value: V) -> None:  # noqa: ARG002
        """Refuse: the kernel cannot."""
        self._overwrites("replace in")

    def setdefault(self, key: int, default: Any = None) -> Any:  # noqa: ARG002
        """Refuse: the kernel cannot."""
        self._overwrites("set default in")

    def _overwrites(self, act: str) -> NoReturn:
        self._cannot(act, "the kernel only overwrites in arrays of descriptors (set it)")


class MapOfMaps(KeyedMap[K, BpfMap]):
    """A map of maps: reading opens the inner map, storing takes a map, or its descriptor.

    ``new`` makes an inner map of the right shape. An inner map is a handle of its own, to be
    closed, and is closed with this one. Opening one that was not stored through this object
    needs CAP_SYS_ADMIN; ``map_id`` does not. Storing and deleting wait until no program uses the
    map before (an RCU grace period: some 10 to 20 ms each).
    """

    def __init__(
        self, descriptor: Descriptor, name: str, layout: MapLayout | None, calls: MapCalls
    ) -> None:
        super().__init__(descriptor, name, layout, calls)
        self._stored: weakref.WeakValueDictionary[int, BpfMap] = weakref.WeakValueDictionary()
        self._opened: weakref.WeakSet[BpfMap] = weakref.WeakSet()

    def _value_codec(self) -> Codec:
        return Codec(None, U32.size)

    def _encode_value(self, value: Any) -> bytes:
        if isinstance(value, BpfMap):
            shape, inner = value._shape, self.layout.inner if self.layout else None
            wrong = inner and differences(inner, shape.type, shape.key_size, shape.value_size)
            if wrong:
                raise OptionError(
                    f"map {value.name} is no inner map: {'; '.join(wrong)} (new() makes one)"
                )
            self._stored[shape.id] = value
        return descriptor_of(value)

    def _decode_value(self, data: bytes) -> BpfMap:
        (map_id,) = U32.unpack(data)
        known = self._stored.get(map_id)
        try:
            fd = self._calls.open_id(map_id)
        except OSError as error:
            if known is not None and not known.closed:
                with known._descriptor as theirs:
                    fd = self._calls.duplicate(theirs)
            elif error.errno == errno.ENOENT:
                raise MapKeyError(
                    f"read map {self.name}: its map {map_id} is gone meanwhile"
                ) from None
            else:
                code = error.errno
                kind = PrivilegeError if code in (errno.EPERM, errno.EACCES) else MapError
                raise kind(
                    f"read map {self.name}: cannot open its map {map_id} (opening by id needs "
                    "CAP_SYS_ADMIN; keep the maps that you store, or use map_id())",
                    errno=code,
                ) from None
        return self._inner(fd)

    def map_id(self, key: K) -> int:
        """Return the id of the inner map; raises MapKeyError. Needs no privilege to open it."""
        data = self._lookup(self._as_key(key, "read"))
        if data is None:
            raise self._missing("read", key)
        return int(U32.unpack(data)[0])

    def map_ids(self) -> dict[K, int]:
        """Return the ids of all inner maps."""
        return {
            self._decode_key(key): int(U32.unpack(value)[0])
            for chunk in self._chunks()
            for key, value in chunk
        }

    def new(self, name: str | None = None, *, max_entries: int | None = None) -> BpfMap:
        """Create a map that may be stored here, empty; close it when it is stored, or later.

        Its shape is what the object says about inner maps. Raises OptionError where that is not
        known, PrivilegeError.
        """
        inner = self.layout.inner if self.layout else None
        if inner is None:
            raise OptionError(
                f"make a map for map {self.name}: the object does not say of which shape"
            )
        try:
            fd = self._calls.create(
                inner.type,
                name or inner.name,
                inner.key_size,
                inner.value_size,
                inner.max_entries if max_entries is None else max_entries,
                inner.flags,
            )
        except OSError as error:
            self._refused("make a map for", error)
        return self._inner(fd, name)

    def _inner(self, fd: int, name: str | None = None) -> BpfMap:
        from kerneltrace_core.maps.opening import adopt

        layout = self.layout.inner if self.layout else None
        made: BpfMap = adopt(fd, name or f"{self.name}.inner", layout, self._calls)
        self._opened.add(made)
        return made

    def _store(self, key: Any, value: Any, flags: int, act: str) -> None:
        if not isinstance(value, BpfMap):
            super()._store(key, value, flags, act)
            return
        with value._descriptor:  # stays open for the call, whoever closes it
            try:
                super()._store(key, value, flags, act)
            except MapError as error:
                if error.errno != errno.EINVAL:
                    raise
                raise MapError(
                    f"{act} map {self.name}: map {value.name} differs from its inner maps in flags "
                    "or max_entries (new() makes one)",
                    errno=error.errno,
                ) from None

    def _take(self, key: bytes) -> NoReturn:  # noqa: ARG002
        # The value is an id: to be opened before the map that holds it forgets it.
        self._cannot("take from", "read it, then delete it")

    def drain(self) -> NoReturn:
        """Refuse: an inner map that nobody holds any more cannot be opened."""
        self._cannot("drain", "read the maps, then clear() it")

    def close(self) -> None:
        """Close this handle, and those of inner maps that came from it."""
        super().close()
        for inner in list(self._opened):
            inner.close()


class HashOfMaps(MapOfMaps[K]):
    """A hash table of maps."""


class ArrayOfMaps(OverwritingMap[BpfMap], MapOfMaps[int]):
    """An array of maps; an element that holds none counts as not there."""


class DescriptorMap(OverwritingMap[Any]):
    """An array of programs, sockets or control groups, stored by descriptor.

    Takes an int or what has a ``fileno()``; reading a ``prog_array`` gives the programs' ids. For
    the others the kernel has no reading, which is UnsupportedError. Storing and deleting in a
    ``prog_array`` take effect at once.
    """

    def _value_codec(self) -> Codec:
        return Codec(None, self._shape.value_size)

    def _encode_value(self, value: Any) -> bytes:
        if isinstance(value, bytes | bytearray | memoryview):
            return super()._encode_value(value)
        return descriptor_of(value).ljust(self._shape.value_size, b"\0")

    def _decode_value(self, data: bytes) -> int:
        return int(U32.unpack_from(data)[0])
