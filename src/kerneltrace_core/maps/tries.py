"""Longest-prefix-match tries: maps by network."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from kerneltrace_core.errors import KernelTraceError, MapKeyExistsError, OptionError
from kerneltrace_core.maps.calls import MapCalls
from kerneltrace_core.maps.kinds import MapFlags, MapType
from kerneltrace_core.maps.mapping import ANY, NEW, KeyedMap

__all__ = ["Prefix", "TrieMap"]

V = TypeVar("V")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Network, address (the whole of it), its spelling, or (bits, bytes).
Prefix = Network | Address | str | tuple[int, bytes]

PREFIX = struct.Struct("=I")


class TrieMap(KeyedMap[Prefix, V]):
    """A trie: a lookup finds the longest prefix that covers the key, as routing tables do.

    Keys of 4 or 16 bytes behind the length are networks of ``ipaddress``; an address, alone or
    spelled, stands for the whole of it; keys of any length can be ``(bits, bytes)``, or the fields
    of the key's struct; what is beyond the bits is ignored. So ``trie[address]``, ``get`` and
    ``in`` answer for whatever covers the key; storing, ``insert``, ``replace``, ``pop`` and
    ``del`` mean exactly the prefix.

    ``insert``, ``replace`` and ``setdefault`` raise UnsupportedError where the kernel overwrites
    regardless: before Linux 6.13, and the updates of older ones from December 2024 on. Of an entry
    that is deleted in the midst of a pass, the pass may give the value of the next wider one.
    """

    _overwrites: bool | None = None

    def _encode_key(self, key: Any) -> bytes:
        size = self._shape.key_size - PREFIX.size
        if isinstance(key, bytes | bytearray | memoryview | Mapping) or hasattr(
            type(key), "_fields_"
        ):
            return self._key.encode(key)
        if isinstance(key, str):
            try:
                key = ipaddress.ip_network(key, strict=False)
            except ValueError as error:
                raise OptionError(str(error)) from None
        if isinstance(key, ipaddress.IPv4Network | ipaddress.IPv6Network):
            bits, data = key.prefixlen, key.network_address.packed
        elif isinstance(key, ipaddress.IPv4Address | ipaddress.IPv6Address):
            bits, data = key.max_prefixlen, key.packed
        elif (
            isinstance(key, Sequence)
            and len(key) == 2
            and isinstance(key[0], int)
            and isinstance(key[1], bytes | bytearray | memoryview)
        ):
            bits, data = key[0], bytes(key[1])
        else:
            raise OptionError(f"{key!r} is no network, address, or (bits, bytes)")
        if len(data) != size:
            raise OptionError(f"{key!r} has {len(data)} bytes, the trie's keys have {size}")
        if not 0 <= bits <= 8 * size:
            raise OptionError(f"a prefix of {bits} bits (0 to {8 * size})")
        return PREFIX.pack(bits) + data

    def _decode_key(self, data: bytes) -> Prefix:
        (bits,) = PREFIX.unpack_from(data)
        rest = data[PREFIX.size :]
        if len(rest) in (4, 16):
            return ipaddress.ip_network((rest, bits), strict=False)
        return bits, rest

    def setdefault(self, key: Prefix, default: V | None = None) -> V:
        """Return what exactly this prefix has, else store."""
        try:
            self.insert(key, cast("V", default))
        except MapKeyExistsError:
            return self[key]  # the longest prefix that covers it is itself
        return cast("V", default)

    def _store(self, key: Any, value: Any, flags: int, act: str) -> None:
        if flags != ANY:
            if self._overwrites is None:
                self._overwrites = kernel_overwrites(self._calls)
            if self._overwrites:
                self._cannot(
                    act,
                    "this kernel overwrites in tries whatever it is asked (set it; Linux 6.13, or "
                    "an update of an older one from December 2024 on, can do so)",
                )
        super()._store(key, value, flags, act)


def kernel_overwrites(calls: MapCalls) -> bool:
    """Try in a trie of its own whether the kernel stores again what was only to be inserted.

    False where it lets us make no map: then nothing is known.
    """
    try:
        fd = calls.create(MapType.LPM_TRIE, "kt_probe", 8, 4, 2, MapFlags.NO_PREALLOC)
    except (OSError, KernelTraceError):
        return False
    try:
        calls.update(fd, bytes(8), bytes(4), NEW)
        calls.update(fd, bytes(8), bytes(4), NEW)
    except OSError:
        return False
    finally:
        calls.close(fd)
    return True
